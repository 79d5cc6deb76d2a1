// The official `openai` package for JavaScript on the Responses API.

import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'

import OpenAI, { APIConnectionTimeoutError, APIError, BadRequestError, NotFoundError } from 'openai'
import { zodTextFormat } from 'openai/helpers/zod'
import { z } from 'zod'

import {
  API_KEY,
  BASE_URL,
  FLAT_WEATHER_TOOL,
  Weather,
  cancelled,
  leaks,
  main,
  newKey,
  release,
  runs,
  scenario,
} from './driving.mjs'

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, timeout: 20_000 })
const { responses, conversations } = client
const tools = [{ ...FLAT_WEATHER_TOOL, strict: false }]
const codeTools = [{ type: 'custom', name: 'run_code', description: 'Runs Python' }]
const text = { format: zodTextFormat(z.object({ city: z.string(), degrees: z.number() }), 'city_weather') }

const ask = (model, input = 'hello', options = {}) => responses.create({ model, input, ...options })
const askStream = (model, input, options) => ask(model, input, { stream: true, ...options })

/** Read a stream the way most code does. */
async function collect(stream) {
  const seen = { pieces: [], reasoning: [], refusal: [], sources: [], finish: [], response: null }
  for await (const event of stream) {
    if (event.type === 'response.output_text.delta') seen.pieces.push(event.delta)
    else if (event.type === 'response.reasoning_summary_text.delta') seen.reasoning.push(event.delta)
    else if (event.type === 'response.refusal.delta') seen.refusal.push(event.delta)
    else if (event.type === 'response.output_text.annotation.added') seen.sources.push(event.annotation)
    else if (/^response\.(completed|incomplete|failed|cancelled)$/.test(event.type)) {
      seen.finish.push(event.response.status)
      seen.response = event.response
    }
  }
  return seen
}

const itemsOf = (response, type) => response.output.filter((item) => item.type === type)
const partsOf = (response) => itemsOf(response, 'message').flatMap((item) => item.content)
const texts = (response) =>
  itemsOf(response, 'message').map((item) => item.content.map((part) => part.text ?? '').join(''))
const summaries = (response) =>
  itemsOf(response, 'reasoning')
    .flatMap((item) => item.summary.map((part) => part.text))
    .join('')
const annotations = (response) => partsOf(response).flatMap((part) => part.annotations)
const citations = (found) => found.map((a) => [a.url, a.title, a.start_index, a.end_index])
const ran = (response) =>
  itemsOf(response, 'mcp_call').map((item) => [item.name, JSON.parse(item.arguments), item.output])

const tokens = (usage) => ({
  input: usage.input_tokens,
  output: usage.output_tokens,
  total: usage.total_tokens,
  cached: usage.input_tokens_details.cached_tokens,
  reasoning: usage.output_tokens_details.reasoning_tokens,
})

async function expectFailure(model, options = {}) {
  const key = newKey()
  try {
    return { answer: await ask(model, key, options) }
  } catch (error) {
    if (!(error instanceof APIError)) throw error
    return {
      error: error.constructor.name,
      status: error.status ?? null,
      code: error.code ?? null,
      request_id: Boolean(error.requestID),
      leaks: leaks(error),
      runs: await runs(key),
    }
  }
}

/** Make a request that the server must refuse. */
async function refused(options) {
  try {
    await responses.create({ model: 'echo', ...options })
  } catch (error) {
    if (!(error instanceof APIError)) throw error
    return { status: error.status, code: error.code, param: error.param }
  }
}

/** The code with which `call` is told that there is nothing. */
async function missing(call) {
  try {
    await call()
    return null
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error
    return error.code
  }
}

// --- answers

scenario('plain', async () => {
  const answer = await ask('echo')
  return { text: answer.output_text, role: answer.output[0].role, finish: answer.status }
})

scenario('whole', async () => ({ text: (await ask('stream')).output_text }))

scenario('streamed', async () => {
  const { pieces, finish } = await collect(await askStream('stream'))
  return { pieces, finish }
})

scenario('stream_helper', async () => {
  const stream = responses.stream({ model: 'stream', input: 'hello' })
  const deltas = []
  const done = []
  const numbers = []
  stream.on('event', (event) => numbers.push(event.sequence_number))
  stream.on('response.output_text.delta', ({ delta }) => deltas.push(delta))
  stream.on('response.output_text.done', ({ text }) => done.push(text))
  const final = await stream.finalResponse()
  if (numbers.some((number, place) => number !== place)) throw new Error(numbers)
  return { text: final.output_text, finish: final.status, deltas, done }
})

scenario('live', async () => {
  const key = newKey()
  const pieces = []
  for await (const event of await askStream('slow', key)) {
    if (event.type === 'response.output_text.delta') {
      pieces.push(event.delta)
      await release(key)
    }
  }
  return { pieces, runs: await runs(key) }
})

scenario('quiet', async () => ({ text: (await collect(await askStream('quiet'))).pieces.join('') }))

scenario('unstored', async () => {
  const answer = await ask('stream', 'hello', { store: false })
  const { pieces, response } = await collect(await askStream('stream', 'hello', { store: false }))
  const kept = []
  for (const { id } of [answer, response]) {
    kept.push((await missing(() => responses.retrieve(id))) !== 'response_not_found')
  }
  return { text: answer.output_text, pieces, kept }
})

scenario('reasoning', async () => {
  const answer = await ask('reason')
  return { reasoning: summaries(answer), text: answer.output_text }
})

scenario('reasoning_streamed', async () => {
  const { reasoning, pieces } = await collect(await askStream('reason'))
  return { reasoning: reasoning.join(''), text: pieces.join('') }
})

scenario('refusal', async () => {
  const answer = await ask('refuse')
  const refusal = partsOf(answer).map((part) => part.refusal)
  return { refusal: refusal.join(''), text: answer.output_text }
})

scenario('refusal_streamed', async () => {
  const { refusal, pieces } = await collect(await askStream('refuse'))
  return { refusal: refusal.join(''), text: pieces.join('') }
})

scenario('sources', async () => {
  const answer = await ask('cite')
  return { text: answer.output_text, sources: citations(annotations(answer)) }
})

scenario('sources_streamed', async () => {
  const { pieces, sources } = await collect(await askStream('cite'))
  return { text: pieces.join(''), sources: citations(sources) }
})

scenario('usage', async () => tokens((await ask('usage')).usage))
scenario('usage_streamed', async () => tokens((await collect(await askStream('usage'))).response.usage))

scenario('length', async () => {
  const { output_text, status, incomplete_details } = await ask('length')
  return { text: output_text, finish: status, reason: incomplete_details.reason }
})

scenario('length_streamed', async () => {
  const { pieces, finish, response } = await collect(await askStream('length'))
  return { text: pieces.join(''), finish: finish.join(), reason: response.incomplete_details.reason }
})

scenario('structured', async () => {
  return (await responses.parse({ model: 'json', input: 'Weather?', text })).output_parsed
})

scenario('structured_streamed', async () => {
  const stream = responses.stream({ model: 'json', input: 'Weather?', text })
  return (await stream.finalResponse()).output_parsed
})

scenario('parameters', async () => {
  const picture = 'data:image/png;base64,cG5n'
  const content = [
    { type: 'input_text', text: 'What is this?' },
    { type: 'input_image', image_url: picture, detail: 'auto' },
  ]
  const options = { instructions: 'Be brief.', temperature: 0.5, max_output_tokens: 50 }
  const answer = await ask('params', [{ role: 'user', content }], options)
  const { params, messages } = JSON.parse(answer.output_text)
  return {
    params: { temperature: params.temperature, max_output_tokens: params.max_output_tokens },
    messages: messages.map(({ role }) => role),
    parts: messages.at(-1).content.map(({ type }) => type),
  }
})

scenario('extras', async () => {
  const answer = await ask('params', 'hello', { user: 'ada', metadata: { team: 'red' }, top_k: 3 })
  const { extra, user, metadata } = JSON.parse(answer.output_text)
  return { extra, user, metadata }
})

scenario('echoed', async () => {
  const said = {
    instructions: 'Be brief.',
    metadata: { team: 'red' },
    temperature: 0.5,
    max_output_tokens: 50,
  }
  const { model, instructions, metadata, temperature, max_output_tokens } = await ask('echo', 'hello', said)
  return { model, instructions, metadata, temperature, max_output_tokens }
})

// --- tools

const wholeTurn = (question) => responses.create(question)
const streamedTurn = (question) => responses.stream(question).finalResponse()

// What the next request sends.
const byItems = (question, answer, added) => ({ input: [...question.input, ...answer.output, ...added] })
const byPreviousId = (question, answer, added) => ({ input: added, previous_response_id: answer.id })
const byReference = (question, answer, added) => {
  const references = answer.output.map(({ id }) => ({ type: 'item_reference', id }))
  return { input: [...question.input, ...references, ...added] }
}
const byConversation = ({ conversation }, answer, added) => ({ input: added, conversation })

/** Answer calls until there are none; `turn` makes one request, `following` says what the next one sends. */
async function converse(model, turn, following, first = {}) {
  const weather = new Weather()
  const seen = { executed: weather.executed, texts: [], finish: [] }
  let question = { input: [{ role: 'user', content: newKey() }], ...first }
  for (let round = 0; round < 3; round++) {
    const answer = await turn({ model, tools, ...question })
    seen.finish.push(answer.status)
    seen.texts.push(...texts(answer))
    const calls = itemsOf(answer, 'function_call')
    if (!calls.length) break
    const outputs = calls.map(({ call_id, name, arguments: said }) => {
      if (name !== 'get_weather') throw new Error(name)
      return { type: 'function_call_output', call_id, output: weather.call(JSON.parse(said)) }
    })
    question = following(question, answer, outputs)
  }
  return seen
}

for (const [name, model, turn, following] of [
  ['client_tool', 'client-tool', wholeTurn, byItems],
  ['client_tool_streamed', 'client-tool', streamedTurn, byItems],
  ['client_tool_by_previous_id', 'client-tool', streamedTurn, byPreviousId],
  ['client_tool_by_reference', 'client-tool', streamedTurn, byReference],
  ['two_tools', 'two-tools', wholeTurn, byPreviousId],
  ['two_tools_streamed', 'two-tools', streamedTurn, byItems],
  ['mixed_tools', 'mixed', wholeTurn, byItems],
  ['mixed_tools_streamed', 'mixed', streamedTurn, byPreviousId],
]) {
  scenario(name, () => converse(model, turn, following))
}

scenario('client_tool_by_conversation', async () => {
  const { id } = await conversations.create()
  return converse('client-tool', streamedTurn, byConversation, { conversation: id })
})

for (const [name, turn] of [
  ['custom_tool', wholeTurn],
  ['custom_tool_streamed', streamedTurn],
]) {
  scenario(name, async () => {
    const first = await turn({ model: 'custom-tool', input: 'hello', tools: codeTools })
    const [call] = first.output
    const answered = { type: 'custom_tool_call_output', call_id: call.call_id, output: '42' }
    const second = await turn({
      model: 'custom-tool',
      input: [answered],
      tools: codeTools,
      previous_response_id: first.id,
    })
    return { name: call.name, input: call.input, text: second.output_text }
  })
}

for (const [name, turn] of [
  ['server_tool', wholeTurn],
  ['server_tool_streamed', streamedTurn],
]) {
  scenario(name, async () => {
    const answer = await turn({ model: 'server-tool', input: 'hello', tools })
    const executed = itemsOf(answer, 'function_call')
    return { executed, ran: ran(answer), texts: texts(answer), finish: answer.status }
  })
}

scenario('server_tool_failed', async () => {
  const answer = await streamedTurn({ model: 'broken-tool', input: 'hello' })
  const [call] = itemsOf(answer, 'mcp_call')
  return { error: call.error.content[0].text, text: answer.output_text }
})

// --- several turns

/** Ask an agent that thinks, looks and answers, then one that tells all it heard. */
async function twoTurns(following, options = {}) {
  const question = { input: [{ role: 'user', content: 'one' }], ...options }
  const answer = await streamedTurn({ model: 'thorough', ...question })
  const next = following(question, answer, [{ role: 'user', content: 'two' }])
  const last = await wholeTurn({ model: 'recall', ...next })
  return { heard: last.output_text.split('\n') }
}

scenario('turns_by_items', () => twoTurns(byItems))
scenario('turns_by_items_unstored', () =>
  twoTurns((...turn) => ({ ...byItems(...turn), store: false }), { store: false }),
)
scenario('turns_by_previous_id', () => twoTurns(byPreviousId))
scenario('turns_by_reference', () => twoTurns(byReference))
scenario('turns_by_conversation', async () => {
  const { id } = await conversations.create()
  return twoTurns(byConversation, { conversation: id })
})

scenario('turns_compacted', async () => {
  const first = await ask('thorough', 'one')
  const { output } = await responses.compact({ model: 'thorough', previous_response_id: first.id })
  const again = await ask('recall', [...output, { role: 'user', content: 'two' }])
  return { heard: again.output_text.split('\n') }
})

const says = (content) => ({ type: 'message', role: 'user', content })

async function saidIn(items) {
  const said = []
  for await (const item of items) said.push(item.content[0].text)
  return said
}

scenario('conversation_items', async () => {
  const made = await conversations.create({ items: [says('one')], metadata: { team: 'red' } })
  const changed = await conversations.update(made.id, { metadata: { team: 'blue' } })
  const of = { conversation_id: made.id }
  const added = (await conversations.items.create(made.id, { items: ['two', 'three', 'four'].map(says) })).data
  const afterDelete = await conversations.items.delete(added[1].id, of)
  const seen = {
    metadata: [made.metadata, changed.metadata, (await conversations.retrieve(made.id)).metadata],
    added: await saidIn(added),
    one: (await conversations.items.retrieve(added[0].id, of)).content[0].text,
    same: afterDelete.id === made.id,
    oldest_first: await saidIn(conversations.items.list(made.id, { order: 'asc', limit: 2 })),
    newest_first: await saidIn(conversations.items.list(made.id, { limit: 2 })),
  }
  const { deleted } = await conversations.delete(made.id)
  return { ...seen, deleted, missing: await missing(() => conversations.retrieve(made.id)) }
})

// --- in the background

async function poll(response) {
  while (['queued', 'in_progress'].includes(response.status)) {
    await new Promise((resolve) => setTimeout(resolve, 20))
    response = await responses.retrieve(response.id)
  }
  return response
}

scenario('background', async () => {
  const key = newKey()
  const first = await ask('slow', key, { background: true })
  await release(key)
  const last = await poll(first)
  return { first: first.status, finish: last.status, text: last.output_text, runs: await runs(key) }
})

scenario('background_streamed', async () => {
  const key = newKey()
  const pieces = []
  const kinds = []
  for await (const event of await askStream('slow', key, { background: true })) {
    kinds.push(event.type)
    if (event.type === 'response.output_text.delta') {
      pieces.push(event.delta)
      await release(key)
    }
  }
  return { begins: kinds.slice(0, 3), pieces, ends: kinds.at(-1), runs: await runs(key) }
})

/** Start a run in the background and leave its stream at the first word. */
async function leaveEarly(key, model = 'stepwise') {
  const before = []
  let id
  for await (const event of await askStream(model, key, { background: true })) {
    if (event.type === 'response.created') id = event.response.id
    if (event.type === 'response.output_text.delta') {
      before.push(event.delta)
      return { id, number: event.sequence_number, before }
    }
  }
}

scenario('background_resumed', async () => {
  const key = newKey()
  const { id, number, before } = await leaveEarly(key)
  const after = []
  const numbers = []
  let finish
  const stream = await responses.retrieve(id, { stream: true, starting_after: number })
  await release(key)
  for await (const event of stream) {
    numbers.push(event.sequence_number)
    if (event.type === 'response.output_text.delta') after.push(event.delta)
    finish = event.response?.status
  }
  const gapless = numbers.length > 0 && numbers.every((got, place) => got === number + 1 + place)
  return { before, after, gapless, finish, runs: await runs(key) }
})

scenario('background_resumed_by_helper', async () => {
  const key = newKey()
  const { id, number, before } = await leaveEarly(key)
  await release(key)
  const stream = responses.stream({ response_id: id, starting_after: number })
  const after = []
  stream.on('response.output_text.delta', ({ delta }) => after.push(delta))
  const final = await stream.finalResponse()
  return { before, after, text: final.output_text, reasoning: summaries(final) }
})

scenario('background_cancelled', async () => {
  const key = newKey()
  const { id } = await leaveEarly(key, 'stall')
  const first = await responses.cancel(id)
  const again = await responses.cancel(id)
  const last = await responses.retrieve(id)
  return {
    finish: [first.status, again.status, last.status],
    text: last.output_text,
    cancelled: await cancelled(key),
    runs: await runs(key),
  }
})

scenario('background_failed', async () => {
  const key = newKey()
  const last = await poll(await ask('fail-mid', key, { background: true }))
  const leaks = JSON.stringify(last).includes('secret detail')
  return { finish: last.status, code: last.error.code, leaks, runs: await runs(key) }
})

// --- what is stored

scenario('retrieved', async () => {
  const made = await ask('thorough', 'hello', { metadata: { team: 'red' } })
  return { same: isDeepStrictEqual(await responses.retrieve(made.id), made) }
})

async function listOf(stream) {
  const events = []
  for await (const event of await stream) events.push(event)
  return events
}

scenario('replayed', async () => {
  const events = await listOf(askStream('thorough'))
  const again = (query) => listOf(responses.retrieve(events[0].response.id, { stream: true, ...query }))
  const rests = []
  for (const number of events.keys()) rests.push(await again({ starting_after: number }))
  return {
    whole: isDeepStrictEqual(await again({}), events),
    rests: rests.every((rest, number) => isDeepStrictEqual(rest, events.slice(number + 1))),
  }
})

scenario('input_items', async () => {
  const input = ['one', 'two', 'three'].map((content) => ({ role: 'user', content }))
  const { id } = await ask('recall', input)
  return {
    newest_first: await saidIn(responses.inputItems.list(id, { limit: 2 })),
    oldest_first: await saidIn(responses.inputItems.list(id, { order: 'asc', limit: 1 })),
  }
})

scenario('deleted', async () => {
  const { id } = await ask('echo')
  await responses.delete(id)
  return { missing: [await missing(() => responses.retrieve(id)), await missing(() => responses.delete(id))] }
})

scenario('counted', async () => {
  const count = (input) => responses.inputTokens.count({ model: 'echo', input })
  const [few, many] = [await count('hello'), await count('hello '.repeat(100))]
  return { object: few.object, grows: 0 < few.input_tokens && few.input_tokens < many.input_tokens }
})

scenario('repeated', async () => {
  const key = newKey()
  const options = { headers: { 'Idempotency-Key': randomUUID() } }
  const send = (input) => responses.create({ model: 'counted', input }, options)
  const [first, second] = [await send(key), await send(key)]
  try {
    await send(`${key} but another`)
  } catch (error) {
    if (!(error instanceof BadRequestError)) throw error
    const texts = [first.output_text, second.output_text]
    return { same: first.id === second.id, texts, other: error.status }
  }
})

// --- failures

scenario('fail_before', () => expectFailure('fail-before'))
scenario('fail_before_streamed', () => expectFailure('fail-before', { stream: true }))
scenario('fail_status', () => expectFailure('fail-status'))
scenario('fail_mid', () => expectFailure('fail-mid'))
scenario('fail_unstored', () => expectFailure('fail-mid', { store: false }))

scenario('retries', async () => {
  if (client.maxRetries !== 2) throw new Error('retries are on by default')
  const { runs } = await expectFailure('fail-before')
  return { runs }
})

async function brokenStream(model, options) {
  const key = newKey()
  const pieces = []
  try {
    for await (const event of await askStream(model, key, options)) {
      if (event.type === 'response.output_text.delta') {
        pieces.push(event.delta)
        await release(key)
      }
    }
  } catch (error) {
    const { code, message } = error
    return { pieces, error: error.constructor.name, code, leaks: leaks(error), runs: await runs(key), message }
  }
  return { pieces }
}

for (const [name, model, options] of [
  ['fail_mid_streamed', 'fail-mid'],
  ['fail_late_streamed', 'fail-late'],
  ['fail_quiet_streamed', 'fail-quiet'],
  ['fail_unstored_streamed', 'fail-late', { store: false }],
]) {
  scenario(name, async () => {
    const { message, ...seen } = await brokenStream(model, options)
    return seen
  })
}

scenario('give_up_streamed', () => brokenStream('give-up'))

scenario('unknown_model', async () => {
  const key = newKey()
  try {
    await ask('nobody', key)
  } catch (error) {
    return { status: error.status, code: error.code, param: error.param ?? null, runs: await runs(key) }
  }
})

const unknown = { conversation: 'conv_unknown', previous_response_id: 'resp_unknown' }
const { conversation, previous_response_id } = unknown

for (const [name, options] of [
  ['bad_parameter', { input: 'hello', temperature: 9 }],
  ['unknown_previous', { input: 'hello', previous_response_id }],
  ['unknown_reference', { input: [{ type: 'item_reference', id: 'msg_unknown' }] }],
  ['unknown_conversation', { input: 'hello', conversation }],
  ['two_contexts', { input: 'hello', ...unknown }],
]) {
  scenario(name, () => refused(options))
}

// --- leaving

async function leave(options) {
  const key = newKey()
  const pieces = []
  for await (const event of await askStream('stall', key, options)) {
    if (event.type === 'response.output_text.delta') {
      pieces.push(event.delta)
      break // leaving the loop aborts the request
    }
  }
  return { pieces, cancelled: await cancelled(key), runs: await runs(key) }
}

scenario('abandon', () => leave())
scenario('abandon_unstored', () => leave({ store: false }))

scenario('too_late', async () => {
  const key = newKey()
  try {
    await responses.create({ model: 'stuck', input: key }, { timeout: 1000, maxRetries: 0 })
  } catch (error) {
    if (!(error instanceof APIConnectionTimeoutError)) throw error
    return { error: error.constructor.name, cancelled: await cancelled(key), runs: await runs(key) }
  }
})

scenario('headers', async () => {
  const { data, response, request_id } = await ask('echo').withResponse()
  return {
    x_request_id: Boolean(request_id),
    version: response.headers.get('openai-version'),
    milliseconds: /^\d+$/.test(response.headers.get('openai-processing-ms')),
    text: data.output_text,
  }
})

await main()
