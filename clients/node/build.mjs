// Builds the package out of the contract: `make protos` has put it into ../../build/protos, or where KRONOS_PROTOS says.
// Types are those of @grpc/proto-loader's own generator, since it is that loader which makes the messages when it runs;
// which methods stream it does not tell, so the services' types are written here.
import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import protobuf from 'protobufjs'

const here = path.dirname(fileURLToPath(import.meta.url))
const protos = path.resolve(process.env.KRONOS_PROTOS ?? path.join(here, '../../build/protos'))
const generated = path.join(here, 'src/generated')
const DOMAINS = ['users', 'tokens', 'logs', 'routes', 'messages', 'cache', 'admin']
const LOADER = ['--longs=String', '--enums=String', '--defaults', '--oneofs']

if (!existsSync(path.join(protos, 'kronos/service_config.json'))) {
  console.error(`${protos} has no contract: run \`make protos\` first`)
  process.exit(1)
}
for (const folder of ['protos', 'src/generated', 'dist']) rmSync(path.join(here, folder), { recursive: true, force: true })
cpSync(protos, path.join(here, 'protos'), { recursive: true })
mkdirSync(generated, { recursive: true })

const files = DOMAINS.map((domain) => `kronos/${domain}/v1/${domain}.proto`)
const run = (program, ...words) => {
  const script = path.join(here, 'node_modules', program)
  execFileSync(process.execPath, [script, ...words], { cwd: here, stdio: ['ignore', 'ignore', 'inherit'] })
}
run('@grpc/proto-loader/build/bin/proto-loader-gen-types.js', ...LOADER, '--grpcLib=@grpc/grpc-js',
  '--importFileExtension=.js', `--includeDirs=${protos}`, '--outDir=src/generated/contract', ...files)

const root = new protobuf.Root()
root.resolvePath = (_origin, target) => path.join(protos, target)
root.loadSync(files).resolveAll()

const lower = (name) => name[0].toLowerCase() + name.slice(1)
const kindOf = ({ requestStream, responseStream }) => (requestStream ? 'both' : responseStream ? 'answers' : 'unary')
const RESULTS = {
  unary: (request, answer) => `(request: ${request}, call?: CallOptions): Promise<${answer}>`,
  answers: (request, answer) => `(request: ${request}, call?: CallOptions): Answers<${answer}>`,
  both: (request, answer) => `(call?: CallOptions): Conversation<${request}, ${answer}>`,
}

// One module for each domain: its messages, and its service as an interface of promises and streams.
const table = {}
for (const domain of DOMAINS) {
  const folder = path.join(generated, 'contract/kronos', domain, 'v1')
  const names = readdirSync(folder).map((name) => path.basename(name, '.ts'))
  const service = root.lookup(`kronos.${domain}.v1`).nestedArray.find((found) => found instanceof protobuf.Service)
  const methods = Object.fromEntries(service.methodsArray.map((method) => [lower(method.name), {
    kind: kindOf(method), writes: 'requestId' in method.resolvedRequestType.fields,
  }]))
  table[domain] = { service: service.fullName.slice(1), methods }
  const members = service.methodsArray.map((method) => {
    const [request, answer] = [method.resolvedRequestType.name, `${method.resolvedResponseType.name}__Output`]
    return `  ${lower(method.name)}${RESULTS[kindOf(method)](request, answer)}`
  })
  const used = new Set(service.methodsArray.flatMap((method) => [
    [method.resolvedRequestType.name, method.resolvedRequestType.name],
    [method.resolvedResponseType.name, `${method.resolvedResponseType.name}__Output`],
  ].map(([file, type]) => `import type { ${type} } from './contract/kronos/${domain}/v1/${file}.js'`)))
  writeFileSync(path.join(generated, `${domain}.ts`), [
    "import type { Answers, CallOptions, Conversation } from '../calls.js'", ...used, '',
    ...names.filter((name) => name !== service.name).map((name) => `export * from './contract/kronos/${domain}/v1/${name}.js'`),
    '', `export interface ${service.name} {`, ...members, '}', '',
  ].join('\n'))
}

const entries = Object.entries(table)
writeFileSync(path.join(generated, 'services.ts'), [
  ...entries.map(([domain, { service }]) => `import type { ${service.split('.').pop()} } from './${domain}.js'`), '',
  'export interface Services {',
  ...entries.map(([domain, { service }]) => `  readonly ${domain}: ${service.split('.').pop()}`), '}', '',
  `export const SERVICES = ${JSON.stringify(table, null, 2)} as const`, '',
].join('\n'))

run('typescript/bin/tsc', '--project', 'tsconfig.json')
