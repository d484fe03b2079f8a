//! The table, and one line for machines.

use super::cpu::Usage;
use super::load::Done;
use super::raw::Raw;
use serde_json::{Value, json};

/// One kind of request by so many callers.
pub struct Phase {
    pub kind: &'static str,
    pub concurrency: usize,
    pub done: Done,
    pub used: Usage,
}

/// Everything that was measured.
pub struct Report {
    sessions: usize,
    pub raw: Vec<Raw>,
    pub phases: Vec<Phase>,
}

impl Phase {
    fn us_each(&self, ns: u64) -> f64 {
        ns as f64 / 1000.0 / (self.done.latencies_us.len().max(1) as f64)
    }

    /// The share of all processors, in percent.
    fn share(&self, ns: u64) -> f64 {
        let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        ns as f64 / 1e7 / self.done.elapsed.as_secs_f64() / processors
    }

    fn others(&self) -> u64 {
        let ours = self.used.server() + self.used.chain + self.used.callers;
        self.used.machine.saturating_sub(ours)
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

impl Report {
    pub fn new(sessions: usize) -> Self {
        Self { sessions, raw: Vec::new(), phases: Vec::new() }
    }

    /// The module with as many threads as the server has sessions.
    fn raw_all(&self) -> &Raw {
        let raw = self.raw.iter().find(|raw| raw.threads == self.sessions);
        raw.expect("it was measured first")
    }

    pub fn show_last(&self) {
        let phase = self.phases.last().expect("there is one");
        println!("{} x{}: {:.0}/s", phase.kind, phase.concurrency, phase.done.per_second());
        if let Some(failure) = &phase.done.failure {
            println!("  {} failed, such as:\n{failure}", phase.done.failed);
        }
    }

    /// Prints all, and writes `bench.json` into the target directory. Whether everything was answered with
    /// a signature.
    pub fn finish(&self) -> bool {
        println!("\n| `C_Sign` alone | per second | CPU each, µs |\n| --- | ---: | ---: |");
        for raw in &self.raw {
            println!("| {} thread(s) | {:.0} | {:.0} |", raw.threads, raw.per_second, raw.cpu_us);
        }
        println!(
            "\n| request | callers | per second | of raw | p50, ms | p99, ms | failed \
             | server CPU each, µs | × `C_Sign` | HSM threads | runtime | SQLite | other \
             | server | chain | callers | others |"
        );
        println!(
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: \
             | ---: | ---: | ---: | ---: | ---: |"
        );
        for phase in &self.phases {
            self.row(phase);
        }
        let line = self.json().to_string();
        println!("\n{line}");
        let path = std::env::var("BENCH_JSON").unwrap_or_else(|_| "target/bench.json".to_owned());
        if let Some(folder) = std::path::Path::new(&path).parent() {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(&path, format!("{line}\n")).unwrap();
        println!("{path}");
        let failed: u64 = self.phases.iter().map(|phase| phase.done.failed).sum();
        if failed > 0 {
            println!("{failed} requests failed: the figures are not of the work");
        }
        failed == 0 && self.phases.iter().all(|phase| !phase.done.latencies_us.is_empty())
    }

    fn row(&self, phase: &Phase) {
        let (done, used, raw) = (&phase.done, &phase.used, self.raw_all());
        let server = phase.us_each(used.server());
        let parts = parts(used);
        println!(
            "| {} | {} | {:.0} | {:.2} | {:.1} | {:.1} | {} | {:.0} | {:.1} | {:.0} | {:.0} \
             | {:.0} | {:.0} | {:.0} % | {:.0} % | {:.0} % | {:.0} % |",
            phase.kind,
            phase.concurrency,
            done.per_second(),
            done.per_second() / raw.per_second,
            done.percentile(50),
            done.percentile(99),
            done.failed,
            server,
            server / raw.cpu_us,
            phase.us_each(parts[0]),
            phase.us_each(parts[1]),
            phase.us_each(parts[2]),
            phase.us_each(parts[3]),
            phase.share(used.server()),
            phase.share(used.chain),
            phase.share(used.callers),
            phase.share(phase.others()),
        );
    }

    fn json(&self) -> Value {
        let raw = self.raw_all();
        let phases: Vec<Value> = self.phases.iter().map(|phase| one(phase, raw)).collect();
        let best = |kind: &str| {
            let all = self.phases.iter().filter(|phase| phase.kind == kind);
            all.map(|phase| phase.done.per_second()).fold(0.0, f64::max)
        };
        let busiest = self.phases.iter().rfind(|phase| phase.kind == "messages");
        let (server, hsm) = busiest.map_or((f64::NAN, f64::NAN), |phase| {
            (phase.us_each(phase.used.server()), phase.us_each(phase.used.of("hsm")))
        });
        json!({
            "ratio_to_raw": round(best("messages") / raw.per_second, 3),
            "raw_per_second": round(raw.per_second, 0),
            "raw_one_per_second": round(self.raw[0].per_second, 0),
            "raw_cpu_us": round(raw.cpu_us, 1),
            "signatures_per_second": round(best("messages"), 0),
            "external_per_second": round(best("external"), 0),
            "transactions_per_second": round(best("transactions"), 0),
            "server_cpu_us_per_signature": round(server, 0),
            "server_cpu_over_c_sign": round(server / raw.cpu_us, 2),
            "server_cpu_over_hsm_threads": round(server / hsm, 2),
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "phases": phases,
        })
    }
}

/// HSM threads, runtime, SQLite, all else.
fn parts(used: &Usage) -> [u64; 4] {
    let (hsm, runtime, sqlite) = (used.of("hsm"), used.of("tokio"), used.of("sqlx"));
    [hsm, runtime, sqlite, used.server().saturating_sub(hsm + runtime + sqlite)]
}

fn one(phase: &Phase, raw: &Raw) -> Value {
    let (done, used) = (&phase.done, &phase.used);
    let threads: Value = used
        .threads
        .iter()
        .map(|(name, ns)| (name.clone(), json!(round(phase.us_each(*ns), 1))))
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({
        "kind": phase.kind,
        "concurrency": phase.concurrency,
        "per_second": round(done.per_second(), 1),
        "ratio_to_raw": round(done.per_second() / raw.per_second, 3),
        "p50_ms": round(done.percentile(50), 2),
        "p99_ms": round(done.percentile(99), 2),
        "failed": done.failed,
        "server_cpu_us": round(phase.us_each(used.server()), 1),
        "server_cpu_over_c_sign": round(phase.us_each(used.server()) / raw.cpu_us, 2),
        "threads_cpu_us": threads,
        "written_bytes": round(used.written as f64 / (done.latencies_us.len().max(1) as f64), 0),
        "share_percent": {
            "server": round(phase.share(used.server()), 1),
            "chain": round(phase.share(used.chain), 1),
            "callers": round(phase.share(used.callers), 1),
            "others": round(phase.share(phase.others()), 1),
        },
    })
}
