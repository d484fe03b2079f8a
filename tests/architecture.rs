//! The architecture as code: who may name whom, what is pure, who may sign. A rule that is broken is
//! told with its place and with why it is there. `docs/ARCHITECTURE.md` has the same in prose.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "architecture/source.rs"]
mod source;

use source::{Source, closing, files, line_of, places, rooms_named, root, shipped};
use std::collections::BTreeSet;
use std::process::Command;

const FILE_LINES_MAX: usize = 600;

/// A room, and the rooms that it may name. `bin` composes and may name all; see [`WATCHER`].
const ROOMS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("ports", &["core"]),
    ("app", &["ports", "core", "failpoint"]),
    // What calls the use cases.
    ("http", &["app", "ports", "core"]),
    ("jobs", &["app", "ports", "core"]),
    ("cli", &["app", "ports", "core", "config", "issuer"]),
    // The other program. It is no client of the use cases: it speaks HTTP with them.
    ("watch", &["ports", "core", "config", "failpoint"]),
    // Edges.
    ("store", &["ports", "core", "failpoint"]),
    ("hsm", &["ports", "core", "failpoint"]),
    ("chain", &["ports", "core", "failpoint"]),
    ("bus", &["ports", "core", "failpoint"]),
    ("audit", &["ports", "core", "failpoint"]),
    ("system", &["ports", "core"]),
    // Small rooms: files of the operator, the development issuer, places where tests crash.
    ("config", &["core"]),
    ("issuer", &["core"]),
    ("failpoint", &[]),
];

/// Rooms of the server, which the watcher must not have, in `src/watch` and in its program.
const SERVER_ONLY: &[&str] = &["app", "audit", "cli", "hsm", "http", "issuer", "jobs", "store"];
const WATCHER: &str = "src/bin/claviger-watcher/";

/// What the table does not allow and is so all the same: file, room, reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[(
    "src/watch/run.rs",
    "bus",
    "the loop around a lane of the embedded bus, which delivers from the watcher's own outbox",
)];

/// A word of the code, the files that may have it (a path or a folder), and why nobody else.
const WORDS: &[(&str, &[&str], &str)] = &[
    // Who may sign.
    ("::mint", &["src/app/sign.rs"], "permits are minted from committed decisions, in one place"),
    (".open()", &["src/hsm/"], "a permit is spent inside the HSM room only"),
    ("Permit::open", &["src/hsm/"], "a permit is spent inside the HSM room only"),
    ("OpenPermit", &["src/hsm/", "src/core/permit.rs"], "an open permit never leaves the HSM room"),
    (
        "DecisionRecord {",
        &["src/store/queries/attempts.rs", "src/core/permit.rs"],
        "a decision record is made from rows that were read back, and by nobody else",
    ),
    ("C_Sign", &["src/hsm/"], "only the HSM room talks to the module"),
    ("session.sign", &["src/hsm/"], "only the HSM room talks to the module"),
    ("signer.sign", &["src/app/sign.rs"], "one use case signs: permit, HSM, compare, store"),
    // What is judged. Who has no facts cannot make a request for policy.
    (
        "Facts {",
        &["src/app/facts.rs", "src/app/record/read.rs", "src/cli/explain.rs", "src/core/policy/"],
        "what a decision looks at is read in one place, all of it: app::facts::gather",
    ),
    (
        "Facts::default",
        &["src/app/facts.rs", "src/app/record/read.rs", "src/cli/explain.rs", "src/core/policy/"],
        "what a decision looks at is read in one place, all of it: app::facts::gather",
    ),
    (
        "destinations::known(",
        &["src/app/facts.rs"],
        "what a decision looks at is read in one place, all of it: app::facts::gather",
    ),
    // The order of the commits.
    (".take_nonce(", &["src/app/lane.rs"], "nonces are given where the decision is written"),
    (
        ".store_signature(",
        &["src/app/sign.rs", "src/app/adopt.rs"],
        "a signature is stored with its SIGNED leaf: what was signed, or was found on the chain",
    ),
    (
        ".adopt_nonce(",
        &["src/app/adopt.rs"],
        "a nonce of the chain is given only with what was mined there",
    ),
    (
        "port.broadcast_told",
        &["src/app/send.rs", "src/app/reconcile/apply.rs"],
        "only stored bytes are sent",
    ),
    (
        "port.broadcast",
        &["src/app/send.rs", "src/app/reconcile/apply.rs"],
        "only stored bytes are sent",
    ),
    // Libraries stay in their rooms.
    ("cryptoki", &["src/hsm/"], "PKCS#11 stays in its edge"),
    ("secp256k1", &["src/hsm/"], "curve arithmetic on signatures stays in its edge"),
    ("sqlx", &["src/store/", "src/watch/store/"], "SQL stays in its edges"),
    ("axum", &["src/http/", "src/bin/"], "HTTP types stay at the door"),
    ("jsonwebtoken", &["src/http/", "src/issuer.rs"], "tokens stay at the door"),
    ("tlog_tiles", &["src/audit/"], "the log's tree stays in its edge"),
    ("lapin", &["src/bus/"], "AMQP stays in its edge"),
    ("clap", &["src/cli/", "src/bin/"], "command lines stay in the programs"),
    (
        "reqwest",
        &["src/chain/", "src/http/", "src/watch/", "src/cli/", "src/bus/webhook.rs"],
        "network stays in edges",
    ),
    // Output.
    (
        "println!",
        &["src/cli/print.rs"],
        "commands print through cli::print, all else is a log line",
    ),
    (
        "eprintln!",
        &["src/cli/print.rs"],
        "commands print through cli::print, all else is a log line",
    ),
    ("print!", &["src/cli/print.rs"], "commands print through cli::print, all else is a log line"),
    ("eprint!", &["src/cli/print.rs"], "commands print through cli::print, all else is a log line"),
    ("stdout", &["src/cli/print.rs", WATCHER], "only commands write to standard output"),
];

/// Words that `core` must not have: it decides from values, and the same values give the same answer.
const IMPURE: &[&str] = &[
    "async",
    ".await",
    "tokio",
    "futures",
    "async_trait",
    "SystemTime",
    "Instant",
    "now_utc",
    "now_v7",
    "new_v4",
    "rand",
    "getrandom",
    "std::fs",
    "std::net",
    "std::env",
    "std::io",
    "std::process",
    "std::thread",
    "tracing",
    "metrics",
    "Mutex",
    "static mut",
];

/// Marks of work that is not done, or of a test that does not run.
const UNFINISHED: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];

fn told(found: &[String]) {
    assert!(found.is_empty(), "{} broken rule(s):\n{}", found.len(), found.join("\n"));
}

fn allowed(path: &str, by: &[&str]) -> bool {
    by.iter().any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
}

fn row(room: &str) -> Option<&'static [&'static str]> {
    ROOMS.iter().find(|(name, _)| *name == room).map(|(_, may)| *may)
}

/// What a file names that its room may not, by line.
fn foreign_rooms(source: &Source) -> Vec<(usize, String, String)> {
    let room = source.room();
    let mut found = Vec::new();
    if room == "bin" {
        for (at, named) in rooms_named(&source.code, "claviger") {
            if source.path.starts_with(WATCHER) && SERVER_ONLY.contains(&named.as_str()) {
                let why = "the watcher is built without the server's rooms".to_owned();
                found.push((line_of(&source.code, at), named, why));
            }
        }
        return found;
    }
    for (at, named) in rooms_named(&source.code, "crate") {
        let known = row(&named).is_some();
        let may = row(room).is_some_and(|may| may.contains(&named.as_str()));
        if known && named != room && !may {
            let may = row(room).unwrap_or_default().join(", ");
            let why = format!("`{room}` may name only: {may}");
            found.push((line_of(&source.code, at), named, why));
        }
    }
    // `super` that climbs to the root would name rooms without `crate`.
    let climb = "super::".repeat(source.depth());
    for at in places(&source.code, &climb) {
        let why = "reach another room by `crate::`, where this test sees it".to_owned();
        found.push((line_of(&source.code, at), climb.clone(), why));
    }
    found
}

#[test]
fn rooms_name_only_the_rooms_they_may() {
    let (mut broken, mut used) = (Vec::new(), BTreeSet::new());
    for source in shipped() {
        if source.path == "src/lib.rs" {
            continue;
        }
        if source.room() != "bin" && row(source.room()).is_none() {
            broken.push(format!("{}:1: no row for this room in ROOMS: give it one", source.path));
            continue;
        }
        for (line, named, why) in foreign_rooms(&source) {
            let exception = (source.path.as_str(), named.as_str());
            if EXCEPTIONS.iter().any(|(path, room, _)| exception == (*path, *room)) {
                used.insert((source.path.clone(), named));
                continue;
            }
            broken.push(format!("{}:{line}: names `{named}`: {why}", source.path));
        }
    }
    for (path, room, reason) in EXCEPTIONS {
        if !used.contains(&((*path).to_owned(), (*room).to_owned())) {
            broken.push(format!("{path}: the exception for `{room}` is not needed ({reason})"));
        }
    }
    told(&broken);
}

#[test]
fn the_core_is_pure() {
    let mut broken = Vec::new();
    for source in shipped().iter().filter(|source| source.room() == "core") {
        for word in IMPURE {
            for at in places(&source.code, word) {
                let line = line_of(&source.code, at);
                broken.push(format!(
                    "{}:{line}: `{word}`: the core waits for nothing, reads nothing, and is told the \
                     time",
                    source.path
                ));
            }
        }
    }
    told(&broken);
}

/// Uses of guarded words outside the files that may have them.
fn misused(source: &Source) -> Vec<String> {
    let mut broken = Vec::new();
    for (word, by, why) in WORDS.iter().filter(|(_, by, _)| !allowed(&source.path, by)) {
        for at in places(&source.code, word) {
            let (path, line) = (&source.path, line_of(&source.code, at));
            broken.push(format!("{path}:{line}: `{word}` outside {}: {why}", by.join(", ")));
        }
    }
    broken
}

#[test]
fn words_with_power_stand_only_where_they_may() {
    told(&shipped().iter().flat_map(misused).collect::<Vec<_>>());
    // A guard whose word is gone guards nothing: the rule has to follow the code.
    let all: Vec<Source> = files("src");
    let gone =
        ["C_Sign", "Permit::open", "port.broadcast", "println!", "eprintln!", "print!", "eprint!"];
    for (word, by, _) in WORDS.iter().filter(|(word, ..)| !gone.contains(word)) {
        let used = all.iter().any(|s| allowed(&s.path, by) && !places(&s.code, word).is_empty());
        assert!(used, "`{word}` is nowhere in {}: has it another name now?", by.join(", "));
    }
}

#[test]
fn every_attempt_is_stored_with_its_decided_leaf_and_every_signature_with_its_signed_leaf() {
    let mut broken = Vec::new();
    for source in shipped().iter().filter(|source| source.room() == "app") {
        for (call, leaf) in
            [(".insert_attempt(", "record::decided("), (".store_signature(", "record::signed(")]
        {
            let calls = places(&source.code, call);
            let leaves = places(&source.code, leaf).len();
            let appends = places(&source.code, ".append_leaf(").len();
            if let Some(at) = calls.last().filter(|_| leaves.min(appends) < calls.len()) {
                let line = line_of(&source.code, *at);
                broken.push(format!("{}:{line}: `{call}…)` without `{leaf}…)`", source.path));
            }
        }
    }
    told(&broken);
}

#[test]
fn lints_are_silenced_with_a_reason_only_and_nothing_is_left_undone() {
    let mut broken = Vec::new();
    for source in files("src").iter().chain(&files("tests")) {
        let (path, code) = (&source.path, &source.code_and_tests);
        for opening in ["#[allow(", "#![allow(", "#[expect(", "#![expect("] {
            for at in places(code, opening) {
                let end = closing(code, at + opening.find('[').unwrap());
                if places(&code[at..end], "reason").is_empty() {
                    let line = line_of(code, at);
                    broken.push(format!("{path}:{line}: `{opening}…)` has no `reason = …`"));
                }
            }
        }
        for word in UNFINISHED {
            for at in places(code, word) {
                let line = line_of(code, at);
                broken.push(format!("{path}:{line}: `{word}`: finish it, or take it out"));
            }
        }
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{path}:{lines}: longer than {FILE_LINES_MAX} lines: split it"));
        }
    }
    told(&broken);
}

fn cargo(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// The names of all packages that a build of these features links.
fn linked(features: &[&str]) -> BTreeSet<String> {
    let tree = ["tree", "--offline", "--locked", "-e", "normal", "--prefix", "none"];
    let text = cargo(&[&tree[..], features].concat());
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_watcher_links_no_code_that_reaches_a_key_and_the_server_one_cryptography_for_tls() {
    let watcher = linked(&["--no-default-features", "--features", "watcher"]);
    let server = linked(&[]);
    for package in ["cryptoki", "cryptoki-sys", "secp256k1", "jsonwebtoken", "axum"] {
        assert!(server.contains(package), "{package} is not in the server: rename it here");
        assert!(
            !watcher.contains(package),
            "{package} is in the watcher's dependency tree: it must not be able to reach a key \
             (cargo tree --no-default-features --features watcher -e normal -i {package})"
        );
    }
    for package in ["ring", "rsa", "openssl", "native-tls"] {
        assert!(!server.contains(package), "{package}: all cryptography of TLS is aws-lc's");
    }
}

/// What a worker of a lane does to it, and who may do so outside the fence.
const LANE_WRITES: &[&str] = &[".take_nonce(", ".halt_lane(", ".advance(", ".touch("];
const UNFENCED: &[(&str, &str)] = &[
    ("src/app/approve.rs", "a person's word about what waits is written wherever it arrives"),
    ("src/app/cancel.rs", "an operator's word is written wherever it arrives"),
    ("src/app/finality.rs", "whoever sees a reorg below finality halts the chain for all"),
    (
        "src/app/release.rs",
        "what waits is in no lane's order yet; its row's version keeps those apart who let it go on",
    ),
    (
        "src/app/source_gone.rs",
        "a caller's word that its event is gone is written wherever it arrives, under the lane's lock; \
         what the lane itself finds is behind the fence",
    ),
    (
        "src/app/suspension.rs",
        "whoever sees a chain ahead of the database halts the lane, under its lock",
    ),
];

/// With either of the two the pool has a task that looks through its connections, which at times never ends, takes
/// a processor and keeps the process from stopping (sqlx issue 3645, in every version up to 0.9.0).
#[test]
fn no_pool_of_connections_has_a_task_that_looks_through_them() {
    let mut pools = 0;
    for source in files("src") {
        for (at, _) in source.text.match_indices("PoolOptions::new()") {
            pools += 1;
            let chain: String = source.text[at..].chars().take(200).collect();
            let both =
                chain.contains(".idle_timeout(None)") && chain.contains(".max_lifetime(None)");
            assert!(both, "{}: a pool with a limit on time", source.path);
        }
    }
    assert!(pools >= 5, "{pools} pools are seen");
}

#[test]
fn what_is_written_for_a_lane_is_written_behind_the_fence() {
    let mut broken = Vec::new();
    for source in shipped().iter().filter(|source| source.room() == "app") {
        let writes = LANE_WRITES.iter().any(|write| source.code.contains(write));
        let excepted = UNFENCED.iter().any(|(path, _)| source.path == *path);
        let bare: Vec<_> = places(&source.code, "unit(&*app.store").into_iter().collect();
        if excepted {
            assert!(writes && !bare.is_empty(), "{}: the exception is not needed", source.path);
        } else if writes {
            broken.extend(bare.into_iter().map(|at| {
                let line = line_of(&source.code, at);
                format!("{}:{line}: a unit of a lane: run it by `lease::fenced`", source.path)
            }));
        }
    }
    told(&broken);
}

/// The files that are in version control; all files where there is none.
fn tracked() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let listed = listed.ok().filter(|listed| listed.status.success());
    let listed = listed.map(|listed| String::from_utf8(listed.stdout).unwrap());
    let sources = || files("src").into_iter().chain(files("tests")).map(|source| source.path);
    listed.map_or_else(
        || sources().collect(),
        |names| names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
    )
}

#[test]
fn nothing_in_the_tree_names_the_machine_it_was_written_on() {
    let homes = ["/wor".to_owned() + "k/", "/roo".to_owned() + "t/", "/hom".to_owned() + "e/"];
    let mut broken = Vec::new();
    for path in tracked() {
        // Listed, and deleted in the working tree.
        let Ok(bytes) = std::fs::read(root().join(&path)) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        for home in &homes {
            for (at, _) in text.match_indices(home.as_str()) {
                let before = text[..at].chars().next_back();
                if before.is_none_or(|c| !c.is_alphanumeric() && !"./_-".contains(c)) {
                    let line = line_of(&text, at);
                    broken.push(format!("{path}:{line}: `{home}`: a path of one machine"));
                }
            }
        }
    }
    told(&broken);
}

mod the_scan_itself {
    use super::source::without_comments_and_strings;
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<(usize, String)> {
        let found = foreign_rooms(&Source::new(path, text));
        found.into_iter().map(|(line, named, _)| (line, named)).collect()
    }

    #[test]
    fn sees_every_way_to_name_a_room() {
        let text = "use crate::core::id;\n// crate::hsm\nuse crate::{ports, store::{a, b},\n  \
                    hsm};\nfn f() { crate::http::g(\"crate::jobs\") }\nuse super::super::bus;\n";
        let found = lines("src/app/accept.rs", text);
        let named: Vec<_> = found.iter().map(|(line, name)| (*line, name.as_str())).collect();
        assert_eq!(named, [(3, "store"), (4, "hsm"), (5, "http"), (6, "super::super::")]);
    }

    #[test]
    fn leaves_tests_out_and_nothing_after_them() {
        let text = "#[cfg(test)]\nmod tests {\n  use crate::hsm; // }\n}\nuse crate::hsm;\n";
        assert_eq!(lines("src/app/x.rs", text), [(5, "hsm".to_owned())]);
    }

    #[test]
    fn keeps_the_watcher_away_from_the_servers_rooms() {
        assert_eq!(lines("src/watch/x.rs", "use crate::store;"), [(1, "store".to_owned())]);
        assert_eq!(lines(WATCHER, "use claviger::hsm;"), [(1, "hsm".to_owned())]);
        assert_eq!(lines("src/bin/claviger/main.rs", "use claviger::hsm;"), []);
    }

    #[test]
    fn sees_a_permit_minted_elsewhere() {
        let text = "fn f() {\n  let p = Permit::mint(record);\n  p.open();\n}";
        let found = misused(&Source::new("src/http/x.rs", text));
        let places = found.iter().map(|line| line.split(": ").next().unwrap());
        assert_eq!(places.collect::<Vec<_>>(), ["src/http/x.rs:2", "src/http/x.rs:3"]);
    }

    #[test]
    fn blanks_strings_and_comments_of_every_kind_and_no_lifetime() {
        let text = "a \"b\\\"c\" r#\"d\"e\"# 'f' '\\'' &'g h /* i /* j */ k */ l // m\nn b\"o\"";
        let left: String = without_comments_and_strings(text).split_whitespace().collect();
        assert_eq!(left, "a&'ghlnb");
        assert_eq!(without_comments_and_strings(text).matches('\n').count(), 1);
    }
}
