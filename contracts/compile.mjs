// Compiles the contracts beside this file to build/*.json, with everything pinned that has an
// influence on the bytes: the compiler (package.json and its lock), its settings, and the names
// under which it sees the sources.
//
//   node compile.mjs           writes build/
//   node compile.mjs --check   compiles again, compares with build/, writes nothing; exits with 1
//                              and names each file that differs, is missing or is left over
//
// The compiler lives outside the clone, where scripts/setup.sh test puts it.

import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const build = join(here, 'build');

const settings = {
  optimizer: { enabled: true, runs: 200 },
  // Without PUSH0, so that the artefacts run on every chain that is in use.
  evmVersion: 'paris',
  // No hash of the metadata at the end of the code: a changed comment does not change the bytes.
  metadata: { bytecodeHash: 'none', appendCBOR: false },
};

const [mode, ...rest] = process.argv.slice(2);
if (rest.length > 0 || (mode !== undefined && mode !== '--check')) {
  fail('usage: node compile.mjs [--check]', 2);
}

const solc = compiler();
const wanted = compile();
if (mode === '--check') {
  check(wanted);
} else {
  write(wanted);
}

function compiler() {
  const pinned = JSON.parse(readFileSync(join(here, 'package.json'), 'utf8')).dependencies.solc;
  const env = process.env;
  const cache =
    env.CLAVIGER_CACHE || join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'claviger');
  const place = join(cache, 'npm', `solc-${pinned}`);
  if (!existsSync(join(place, 'node_modules', 'solc'))) {
    fail(`solc ${pinned} is not in ${place}: run scripts/setup.sh test`, 1);
  }
  // Loading the compiler installs handlers that print what went wrong with a megabyte of its own
  // source; we report errors ourselves.
  const solc = createRequire(join(place, 'package.json'))('solc');
  process.removeAllListeners('uncaughtException');
  process.removeAllListeners('unhandledRejection');
  if (!solc.version().startsWith(`${pinned}+`)) {
    fail(`expected solc ${pinned}, found ${solc.version()}`, 1);
  }
  return solc;
}

// File name to file content, as it belongs in build/.
function compile() {
  const names = readdirSync(here).filter((name) => name.endsWith('.sol')).sort();
  const sources = Object.fromEntries(
    names.map((name) => [name, { content: readFileSync(join(here, name), 'utf8') }]),
  );
  const outputSelection = {
    '*': { '*': ['abi', 'evm.bytecode.object', 'evm.deployedBytecode.object'] },
  };
  const input = { language: 'Solidity', sources, settings: { ...settings, outputSelection } };
  const output = JSON.parse(solc.compile(JSON.stringify(input)));
  const problems = output.errors ?? [];
  if (problems.length > 0) {
    // Warnings too: the sources are small enough to have none.
    fail(problems.map((problem) => problem.formattedMessage).join('\n'), 1);
  }
  const version = solc.version().replace(/\.Emscripten\.clang$/, '');
  const files = new Map();
  for (const source of names) {
    for (const [contractName, contract] of Object.entries(output.contracts[source] ?? {})) {
      const artefact = {
        contractName,
        source,
        compiler: { name: 'solc', version, settings },
        abi: contract.abi,
        bytecode: `0x${contract.evm.bytecode.object}`,
        deployedBytecode: `0x${contract.evm.deployedBytecode.object}`,
      };
      files.set(`${contractName}.json`, `${JSON.stringify(artefact, null, 2)}\n`);
    }
  }
  return files;
}

function committed() {
  return existsSync(build) ? readdirSync(build).sort() : [];
}

function write(files) {
  mkdirSync(build, { recursive: true });
  for (const name of committed()) {
    if (!files.has(name)) rmSync(join(build, name));
  }
  for (const [name, content] of files) {
    writeFileSync(join(build, name), content);
    console.log(`build/${name}`);
  }
}

function check(files) {
  const wrong = [];
  for (const [name, content] of files) {
    const path = join(build, name);
    if (!existsSync(path)) wrong.push(`contracts/build/${name} is missing`);
    else if (readFileSync(path, 'utf8') !== content) wrong.push(`contracts/build/${name} is stale`);
  }
  for (const name of committed()) {
    if (!files.has(name)) wrong.push(`contracts/build/${name} belongs to no contract`);
  }
  if (wrong.length > 0) {
    fail([...wrong, 'run: node contracts/compile.mjs, and commit the result'].join('\n'), 1);
  }
  console.log(`${files.size} artefacts are what the sources compile to`);
}

function fail(message, code) {
  console.error(message);
  process.exit(code);
}
