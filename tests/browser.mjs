// Drives ComfyUI's page in Chromium for test_comfyui_browser.py, which judges what this prints.
//
//   node browser.mjs PORT WORKFLOWS SCREENSHOTS [RUN HELP]
//
// drops the workflows of the folder WORKFLOWS/wired on the canvas and runs them, and with RUN and HELP also RUN, which it
// runs, and HELP, whose nodes' help it opens. Then it opens the template browser, in which HELP is not, drops the other
// workflows, opens as apps those of the folder WORKFLOWS/apps and runs them on the video and the picture that lie there,
// searches for blueprints and turns the page to Chinese. It prints one JSON object. CHROMIUM names the browser;
// playwright-core is looked for beside PLAYWRIGHT_CORE/node_modules, or as node finds it from here.

import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, extname, join, resolve } from 'node:path'

const PACK = 'ComfyUI-AnyCharV'
const [port, folder, screenshots, run, helped] = process.argv.slice(2)
const { chromium } = createRequire(join(resolve(process.env.PLAYWRIGHT_CORE ?? '.'), 'any.js'))('playwright-core')
const blueprints = ['Replace Character (AnyCharV)', 'Animate Character (AnyCharV)', 'Prepare Video (AnyCharV)']
const origin = `http://127.0.0.1:${port}`
const read = (folder) =>
  readdirSync(folder)
    .filter((file) => file.endsWith('.json'))
    .sort()
    .map((file) => {
      const text = readFileSync(join(folder, file), 'utf8')
      return { name: file.slice(0, -'.json'.length), text, graph: JSON.parse(text) }
    })
const workflows = read(folder)

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
})
const context = await browser.newContext({ viewport: { width: 1600, height: 900 } })
// The page asks other hosts for news and model sizes, which no test should depend on.
await context.route((url) => url.origin !== origin, (route) => route.abort())
const page = await context.newPage()
page.setDefaultTimeout(60_000)
let errors = []
page.on('console', (message) => {
  const { url } = message.location()
  const foreign = url.startsWith('http') && !url.startsWith(origin)
  if (message.type() === 'error' && !foreign) errors.push(`${message.text()} (${url.replace(origin, '')})`)
})
page.on('pageerror', (error) => errors.push(`uncaught: ${error.stack ?? error}`))

function taken() {
  const all = errors
  errors = []
  return all
}

async function settled(read, done, seconds) {
  const end = Date.now() + seconds * 1000
  let value = await read()
  while (!done(value) && Date.now() < end) {
    await page.waitForTimeout(250)
    value = await read()
  }
  return value
}

const command = (id) => page.evaluate((id) => window.app.extensionManager.command.execute(id), id)
const picture = (name) => page.screenshot({ path: join(screenshots, `${name}.png`) })
const dialogs = () => page.evaluate(() => [...document.querySelectorAll('[role=dialog]')].map((one) => one.innerText))

async function closeDialogs() {
  for (let left = 5; left && (await dialogs()).length; left--) {
    await page.keyboard.press('Escape')
    await page.waitForTimeout(500)
  }
}

async function closePanels() {
  const dismiss = page.getByTestId('error-overlay-dismiss')
  if (await dismiss.isVisible()) await dismiss.click()
  const close = page.getByRole('button', { name: 'Toggle properties panel' })
  if (await page.getByTestId('properties-panel').isVisible()) await close.last().click()
}

function graphNodes() {
  return page.evaluate(() =>
    window.app.graph.nodes.map((node) => ({ id: Number(node.id), type: node.type, hasErrors: !!node.has_errors }))
  )
}

async function drop({ name, text, graph }) {
  await page.evaluate(
    ([text, name]) => {
      const dataTransfer = new DataTransfer()
      dataTransfer.items.add(new File([text], `${name}.json`, { type: 'application/json' }))
      const event = new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer })
      document.querySelector('#graph-canvas').dispatchEvent(event)
    },
    [text, name]
  )
  const kinds = (nodes) => nodes.map((node) => `${node.id} ${node.type}`).sort().join()
  await settled(graphNodes, (nodes) => kinds(nodes) === kinds(graph.nodes), 30)
}

// The Errors tab of the side panel, by group: titles are those that a user reads.
function errorGroups() {
  return page.evaluate(() =>
    Object.fromEntries(
      [...document.querySelectorAll('[data-testid^="error-group-"]:not([data-testid$="message"])')].map((group) => [
        group.dataset.testid.replace('error-group-', ''),
        {
          text: group.innerText,
          // The other titles are those of icon buttons.
          models: [...group.querySelectorAll('[title]')]
            .map((row) => row.title)
            .filter((title) => group.innerText.includes(title)),
          media: [...group.querySelectorAll('[data-testid="missing-media-row"]')].map((row) => row.innerText),
        },
      ])
    )
  )
}

async function open(workflow) {
  await drop(workflow)
  const expected = workflow.graph.nodes.some((node) => node.properties?.models?.length)
  const overlay = page.getByTestId('error-overlay-see-errors')
  await settled(() => overlay.isVisible(), (seen) => seen, expected ? 30 : 3)
  let groups = {}
  if (await overlay.isVisible()) {
    await overlay.click()
    // Models are looked up one by one, so that the list may still grow.
    await settled(errorGroups, (now) => Object.keys(now).length > 0, 15)
    await page.waitForTimeout(2000)
    groups = await errorGroups()
  }
  await picture(workflow.name)
  const seen = { nodes: await graphNodes(), dialogs: await dialogs(), groups, errors: taken() }
  await closeDialogs()
  await closePanels()
  return seen
}

// Of runs, how the last one ended, how often it showed something, and the canvas while it did.
function watch() {
  return page.evaluate(() => {
    const { api } = window.app
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted']) {
      api.addEventListener(kind, ({ detail }) => (window.outcome = { kind, detail }))
    }
    api.addEventListener('b_preview', async () => {
      window.previews++
      // Drawn once the picture is decoded.
      for (let frames = 3; frames; frames--) await new Promise(requestAnimationFrame)
      window.canvases.push(document.querySelector('#graph-canvas').toDataURL('image/jpeg'))
    })
  })
}

// How a run ends that a button starts, and how often it showed something meanwhile.
async function outcomeOf(button) {
  await page.evaluate(() => Object.assign(window, { outcome: null, previews: 0, canvases: [] }))
  await button.click()
  const outcome = await settled(() => page.evaluate(() => window.outcome), (value) => value, 300)
  return outcome && { ...outcome, previews: await page.evaluate(() => window.previews) }
}

async function queue(name) {
  const outcome = await outcomeOf(page.getByTestId('queue-button'))
  const canvases = await page.evaluate(() => window.canvases)
  for (const [index, url] of canvases.entries()) {
    writeFileSync(join(screenshots, `${name}_preview_${index}.jpg`), Buffer.from(url.split(',')[1], 'base64'))
  }
  if (outcome?.kind !== 'execution_success') return { outcome, results: [] }
  // Only what is in view is drawn, and with it its video loaded.
  await command('Comfy.Canvas.FitView')
  // The page gives a video 16 s to load, which a busy machine may exceed: it tries again when told to forget it.
  const previews = () =>
    page.evaluate(() =>
      window.app.graph.nodes
        .filter((node) => ['SaveVideo', 'SaveImage'].includes(node.type))
        .map((node) => {
          const video = node.widgets.map((widget) => widget.element?.querySelector?.('video')).find((one) => one)
          const image = node.imgs?.[0]
          if (!video && !image && !node.isLoading) node.images = null
          window.app.canvas.setDirty(true, true)
          const width = video?.videoWidth ?? image?.naturalWidth
          return { id: Number(node.id), src: (video ?? image)?.src, width, seconds: video?.duration }
        })
    )
  const results = await settled(previews, (all) => all.every((result) => result.width), 180)
  return { outcome, results }
}

async function portrait(name) {
  const settings = [
    ['Comfy.Minimap.Visible', false],
    ['Comfy.Graph.CanvasInfo', false],
    ['LiteGraph.Canvas.MinFontSizeForLOD', 0],
  ]
  for (const one of settings) {
    await page.evaluate(([id, value]) => window.app.extensionManager.setting.set(id, value), one)
  }
  const height = await page.evaluate(() => {
    const { canvas, graph } = window.app
    canvas.deselectAll()
    const boxes = [...graph.nodes.map((node) => node.boundingRect), ...graph.groups.map((group) => group.boundingRect)]
    const low = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])))
    const high = [0, 1].map((axis) => Math.max(...boxes.map((box) => box[axis] + box[axis + 2])))
    // What the side bar, the tabs and the run button leave free.
    const [left, top] = [75, 100]
    canvas.ds.scale = (innerWidth - left - 15) / (high[0] - low[0])
    canvas.ds.offset[0] = left / canvas.ds.scale - low[0]
    canvas.ds.offset[1] = top / canvas.ds.scale - low[1]
    canvas.setDirty(true, true)
    return top + Math.ceil(canvas.ds.scale * (high[1] - low[1]))
  })
  const whole = page.viewportSize()
  await page.setViewportSize({ ...whole, height: height + 90 })
  await page.mouse.move(800, height + 60)
  // Toasts and the job's notification leave by themselves.
  await page.waitForTimeout(8000)
  await picture(name)
  await page.setViewportSize(whole)
}

async function templates() {
  await command('Comfy.BrowseTemplates')
  await page.getByText(PACK, { exact: true }).first().click()
  const cards = () =>
    page.evaluate(() =>
      [...document.querySelectorAll('[data-testid^="template-workflow-"]')].map((card) => {
        const image = card.querySelector('img')
        // Pictures below the fold are loaded when they come into view.
        if (!image?.naturalWidth) card.scrollIntoView()
        return {
          name: card.dataset.testid.replace('template-workflow-', ''),
          // Of an image that failed, the page shows one of its own instead.
          size: image?.complete && !image.src.includes('default-template') && [image.naturalWidth, image.naturalHeight],
        }
      })
    )
  const shipped = workflows.filter(({ name }) => name !== helped)
  const names = shipped.map((workflow) => workflow.name).join()
  const shown = (all) => all.map((card) => card.name).sort().join() === names && all.every((card) => card.size?.[0])
  const found = await settled(cards, shown, 60)
  await picture('templates')
  await closeDialogs()
  return found
}

async function help(id) {
  await page.evaluate((id) => {
    const node = window.app.graph.nodes.find((node) => Number(node.id) === id)
    window.app.canvas.deselectAll()
    window.app.canvas.centerOnNode(node)
    window.app.canvas.selectNode(node)
  }, id)
  await page.getByTestId('info-button').click()
  const content = page.locator('.node-help-content .markdown-content')
  const text = () => content.first().innerText()
  await content.first().waitFor()
  return { text: await settled(text, (value) => value.length > 200, 15), tables: await content.locator('table').count() }
}

// What a form asks for: a file of each kind, and how many steps, of which a test takes few.
async function fill(form) {
  for (const file of readdirSync(join(folder, 'apps')).filter((file) => !file.endsWith('.json'))) {
    const kind = file.endsWith('.mp4') ? 'video' : 'image'
    for (const field of await form.locator(`input[type=file][accept*="${kind}"]`).all()) {
      await field.setInputFiles(join(folder, 'apps', file))
      // Where another file has that name already, it gets a number behind it.
      await form.getByText(basename(file, extname(file))).first().waitFor()
    }
  }
  for (const field of await form.locator('[data-widget-key$=steps] input').all()) {
    await field.fill('2')
    await field.press('Enter')
  }
}

// The form of App Mode, as a user reads it, and what its Run button does when it is filled in.
async function asApp({ name, graph }) {
  const shown = { ...graph, extra: { ...graph.extra, linearMode: true } }
  await drop({ name, text: JSON.stringify(shown), graph })
  const skip = page.getByRole('button', { name: 'Skip' })
  await settled(() => skip.isVisible(), (seen) => seen, apps++ ? 1 : 10)
  if (await skip.isVisible()) await skip.click()
  const form = page.getByTestId('linear-widgets')
  await settled(() => form.isVisible(), (seen) => seen, 15)
  const text = await form.innerText()
  await fill(form)
  await picture(`app_${name}_form`)
  const outcome = await outcomeOf(page.getByTestId('linear-run-button').getByText('Run', { exact: true }))
  await picture(`app_${name}`)
  return { form: text, outcome }
}
let apps = 0

// Adds the first thing that a search for some words finds to an empty workflow, and tells what it is.
async function searched(words) {
  await command('Comfy.NewBlankWorkflow')
  await settled(graphNodes, (nodes) => nodes.length === 0, 10)
  const search = page.getByRole('dialog').first()
  const opened = async () => {
    await page.mouse.dblclick(800, 700)
    await page.waitForTimeout(700)
    return search.isVisible()
  }
  await settled(opened, (seen) => seen, 15)
  await page.keyboard.type(words)
  await page.getByRole('option').first().waitFor()
  // The list may still grow.
  await page.waitForTimeout(1000)
  const offered = await page.getByRole('option').allInnerTexts()
  await picture(`search ${words}`)
  await page.keyboard.press('Enter')
  // It hangs on the pointer until it is put down.
  await page.mouse.click(800, 300)
  const last = () =>
    page.evaluate(() => {
      const node = window.app.graph.nodes.at(-1)
      return { title: node?.title, within: node?.subgraph?.nodes.map((one) => one.type) ?? [] }
    })
  return { offered, added: await settled(last, (node) => node.within.length, 10) }
}

async function chinese() {
  await page.evaluate(() => window.app.extensionManager.setting.set('Comfy.Locale', 'zh'))
  await page.reload()
  await page.waitForFunction(() => window.app?.graph && window.LiteGraph.registered_node_types.AnyCharVConditioning)
  return page.evaluate(() => {
    const node = window.LiteGraph.createNode('AnyCharVConditioning')
    const inputs = Object.fromEntries(node.inputs.map((slot) => [slot.name, slot.localized_name]))
    return { title: node.title, inputs, outputs: node.outputs.map((slot) => slot.localized_name) }
  })
}

const seen = { wired: {}, workflows: {}, help: {}, apps: {}, searched: {} }
const named = (name) => workflows.find((workflow) => workflow.name === name)

async function visitAll() {
  const [first, second] = [run, helped].map(named)
  seen.workflows[run] = await open(first)
  seen.run = await queue('run')
  await portrait('run')
  seen.run.errors = taken()
  seen.workflows[helped] = await open(second)
  const documented = second.graph.nodes.filter((node) => node.type.startsWith('AnyCharV'))
  for (const { type, id } of documented) seen.help[type] ??= await help(id)
  await picture('help')
  await closePanels()
  seen.help_errors = taken()
  seen.templates = await templates()
  seen.templates_errors = taken()
  for (const workflow of workflows.filter((one) => ![first, second].includes(one))) {
    seen.workflows[workflow.name] = await open(workflow)
  }
  for (const words of [...blueprints, 'character swap', '视频换人']) seen.searched[words] = await searched(words)
  for (const app of read(join(folder, 'apps'))) seen.apps[app.name] = await asApp(app)
  seen.chinese = await chinese()
}

try {
  await page.goto(origin)
  await page.waitForFunction(() => window.app?.graph)
  await watch()
  // The template browser opens by itself at the first start, some time after the canvas.
  await settled(dialogs, (all) => all.length > 0, 10)
  await closeDialogs()
  seen.start = { errors: taken() }
  for (const workflow of read(join(folder, 'wired'))) {
    await open(workflow)
    seen.wired[workflow.name] = await queue(workflow.name)
    await portrait(workflow.name)
  }
  taken()
  if (run) await visitAll()
} catch (error) {
  await picture('failure').catch(() => {})
  seen.failure = { error: String(error.stack ?? error), errors: taken() }
}
await browser.close()
console.log(JSON.stringify(seen))
