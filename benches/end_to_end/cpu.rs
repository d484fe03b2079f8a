//! Who used the processors, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

/// CPU time in nanoseconds.
#[derive(Clone, Default)]
pub struct Usage {
    /// The server, by the name of its threads.
    pub threads: BTreeMap<String, u64>,
    /// The local chain.
    pub chain: u64,
    /// This process, which is the callers.
    pub callers: u64,
    /// Everything on the machine.
    pub machine: u64,
    /// Bytes that the server wrote to its disk.
    pub written: u64,
}

impl Usage {
    pub fn now(server: u32, chain: u32) -> Self {
        let written = fs::read_to_string(format!("/proc/{server}/io")).unwrap_or_default();
        let written = written.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        Self {
            threads: threads(server),
            chain: threads(chain).values().sum(),
            callers: threads(std::process::id()).values().sum(),
            machine: machine(),
            written: written.and_then(|text| text.parse().ok()).unwrap_or(0),
        }
    }

    pub fn since(&self, before: &Self) -> Self {
        let threads = self.threads.iter().map(|(name, ns)| {
            let earlier = before.threads.get(name).copied().unwrap_or(0);
            (name.clone(), ns.saturating_sub(earlier))
        });
        Self {
            threads: threads.collect(),
            chain: self.chain.saturating_sub(before.chain),
            callers: self.callers.saturating_sub(before.callers),
            machine: self.machine.saturating_sub(before.machine),
            written: self.written.saturating_sub(before.written),
        }
    }

    pub fn server(&self) -> u64 {
        self.threads.values().sum()
    }

    /// What the threads of this kind used.
    pub fn of(&self, kind: &str) -> u64 {
        let all = self.threads.iter().filter(|(name, _)| name.starts_with(kind));
        all.map(|(_, ns)| ns).sum()
    }
}

/// Time on a processor by thread name, without the number that some have at their end.
fn threads(pid: u32) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let name = read("comm");
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
        let ns = read("schedstat").split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
        *found.entry(name.to_owned()).or_default() += ns.unwrap_or(0);
    }
    found
}

/// Time on a processor of this thread.
pub fn this_thread() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// All that was not idle, in steps of ten milliseconds.
fn machine() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal
    let ticks = fields.take(8).enumerate().filter(|(at, _)| ![3, 4].contains(at));
    ticks.map(|(_, ticks)| ticks.parse::<u64>().unwrap_or(0)).sum::<u64>() * 10_000_000
}
