"""What a batch is made of: puppets rendered on the fly, shards of real videos, generated pairs.

A sample is one clip, some successive frames of a video, as a dict of uint8 tensors. It is a pure function of
(seed, epoch, index) (`samples.py`):

    frames     [F, H, W, 3]  RGB
    pose       [F, H, W, 3]  skeletons, drawn `pose_scale` times as large and brought down
    character  [F, H, W]     exact mask of the person, 0 or 255
    mask       [F, H, W]     the mask that the network is given, 0 or 255; covers `character`
    reference  [H, W, 3]     the same person elsewhere, background black, or as `Data.reference` says
    order      [F, H, W]     of puppets with depth twins: 255 where these look different
    scene      [F, H, W, 3]  of pairs only: the generated driving video (eq. 3)
"""
