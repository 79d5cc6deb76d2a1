// What the JavaScript drivers share: a registry of scenarios, a way to ask the server's ledger, and the output.

import { randomUUID } from 'node:crypto'
import { writeSync } from 'node:fs'

export const BASE_URL = process.argv[2]
export const API_KEY = process.env.OPENAI_API_KEY ?? 'test'
export const SCENARIO_LIMIT = 30_000

const WEATHER = { Paris: '21 °C', Rome: '24 °C' }
export const WEATHER_PARAMETERS = {
  type: 'object',
  properties: { city: { type: 'string' } },
  required: ['city'],
  additionalProperties: false,
}
const weather = { name: 'get_weather', description: 'Weather of a city', parameters: WEATHER_PARAMETERS }
export const WEATHER_TOOL = { type: 'function', function: weather }
/** The same for the Responses API. */
export const FLAT_WEATHER_TOOL = { type: 'function', ...weather }

const scenarios = new Map()

/** Register a scenario; what it returns is compared with what is expected. */
export function scenario(name, body) {
  scenarios.set(name, body)
}

/** The client's own tool, and a list of every call of it. */
export class Weather {
  executed = []

  call = (input) => {
    this.executed.push(input)
    return WEATHER[input.city]
  }
}

/** A first message by which the ledger tells this run from others. */
export const newKey = () => `run ${randomUUID()}`

/** Make a request without any client library. */
export async function plainly(path, body) {
  const response = await fetch(`${BASE_URL}${path}`, {
    method: body ? 'POST' : 'GET',
    headers: { 'content-type': 'application/json', authorization: `Bearer ${API_KEY}` },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(SCENARIO_LIMIT),
  })
  return { status: response.status, body: await response.json() }
}

/** Ask the server what became of the runs of `key`. */
async function askLedger(order, key) {
  const content = JSON.stringify({ do: order, key })
  const { body } = await plainly('/chat/completions', { model: 'ledger', messages: [{ role: 'user', content }] })
  return JSON.parse(body.choices[0].message.content)
}

export const runs = async (key) => (await askLedger('read', key)).started
export const release = (key) => askLedger('release', key)
export const cancelled = async (key) => (await askLedger('wait_cancelled', key)).cancelled

/** Whether an error shows the caller what the agent's exception said. */
export const leaks = (error) =>
  [error?.message, String(error), error?.stack, JSON.stringify(error) ?? ''].some((text) =>
    text?.includes('secret detail'),
  )

/** Run every scenario and print one JSON object for each. */
export async function main() {
  console.log = console.info = console.warn = console.error // libraries may talk; stdout is ours
  for (const [name, body] of scenarios) {
    writeSync(1, JSON.stringify({ scenario: name, ...(await outcome(body)) }) + '\n')
  }
  process.exit(0) // idle keep-alive connections and late timers of the libraries would hold us up
}

async function outcome(body) {
  let timer
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end within ${SCENARIO_LIMIT} ms`)), SCENARIO_LIMIT)
  })
  try {
    return { result: await Promise.race([body(), limit]) }
  } catch (error) {
    return { crash: error?.stack ?? String(error) }
  } finally {
    clearTimeout(timer)
  }
}
