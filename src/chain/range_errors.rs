//! What a node's error means when a range of logs was asked for: one table of the words of clients and
//! providers, in the order in which they are looked for.
//!
//! The words change faster than any table, so the rule for words that are not in it matters most: a range
//! of several blocks that was refused in unknown words is asked for in smaller parts, and a single block
//! in unknown words is a failure of the node. What a text says would work is told on, and believed by nobody.

use super::classify::NodeError;
use serde_json::Value;

/// So much of a text is read; it is the node's, and can be megabytes long.
const WORDS_CHARS_MAX: usize = 1000;
/// A width above this is no width.
const WIDTH_MAX: u64 = 10_000_000;
/// So far behind its words a number may stand, in bytes ("to a 10,000").
const NUMBER_REACH: usize = 4;

/// The blocks that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) from: u64,
    pub(super) to: u64,
}

impl Asked {
    pub(super) const fn is_one(self) -> bool {
        self.from >= self.to
    }

    /// Its first half; `None` of one block.
    pub(super) const fn half(self) -> Option<Self> {
        let Self { from, to } = self;
        if self.is_one() {
            return None;
        }
        Some(Self { from, to: from.saturating_add(to.saturating_sub(from) / 2) })
    }
}

/// What it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Ask for less: for so many blocks, or up to this one, as the node says.
    TooWide { blocks: Option<u64>, to: Option<u64> },
    /// Leave it alone for a while.
    Busy,
    /// One of the two: half of the range tells.
    Undecided,
    /// Nothing about the range.
    Other,
}

/// Where a text has its number.
#[derive(Debug, Clone, Copy)]
enum Hint {
    No,
    /// Two heights: from, to.
    Pair,
    /// A count of blocks behind these words.
    After(&'static str),
}

#[derive(Debug, Clone, Copy)]
enum Means {
    /// This node will never have it, or wants it asked otherwise.
    Never,
    Busy,
    Wide(Hint),
    /// It ran out of time: a range is then too wide, and for a single block the node is busy.
    Slow,
    Undecided,
}

use Hint::{After, No, Pair};
use Means::{Busy, Never, Slow, Undecided, Wide};

/// The table, in lower case. The first row whose text occurs decides.
const TABLE: &[(&str, Means)] = &[
    // What is not there, or not for this caller.
    ("pruned history unavailable", Never), // geth, reth
    ("old data not available due to pruning", Never), // Erigon
    ("archive requests require", Never),   // publicnode
    ("does not exist/is not available", Never), // geth and many
    ("method not found", Never),           // merkle
    ("method is not whitelisted", Never),
    ("not included in your current plan", Never),
    ("is not available on free plan", Never), // dRPC
    ("can't route your request", Never),      // dRPC
    ("must authenticate", Never),             // Ankr
    ("please specify an address", Never),     // publicnode
    ("less number of addresses", Never),      // publicnode
    ("too many addresses", Never),
    ("maximum number of addresses", Never),
    // Quotas. Before the ranges, since some speak of a smaller range too.
    ("rate limit", Busy),    // Infura, dRPC and many
    ("rate exceeded", Busy), // Infura
    ("too many requests", Busy),
    ("request count exceeded", Busy), // Infura, by day
    ("request limit", Busy),          // QuickNode, by second and minute
    ("exceeded the quota", Busy),     // 1RPC
    ("credits limited", Busy),
    ("compute units", Busy),  // Alchemy
    ("capacity limit", Busy), // Alchemy, by month
    ("reached the free tier", Busy),
    ("limit for your current plan", Busy),
    ("upgrade your tier", Busy),
    ("too much load", Busy),
    ("no server available", Busy),
    ("temporarily unavailable", Busy),
    ("network connection issue", Busy), // QuickNode
    // Two heights that would do.
    ("this block range should work", Wide(Pair)), // Alchemy, all plans; Blast API
    ("try with this block range", Wide(Pair)),    // Infura, zkSync, Gnosis, Fraxtal
    ("retry with the range", Wide(Pair)),         // reth
    // A count of logs or bytes, which is no width.
    ("logs matched by query exceeds", Wide(No)), // Arbitrum
    ("too many logs", Wide(No)),                 // Erigon
    ("query exceeds limit of", Wide(No)),
    ("query exceeds max results", Wide(No)), // reth, LlamaRPC, Ankr
    ("query returned more than", Wide(No)),  // Infura, Polygon zkEVM, PulseChain
    ("response size should not", Wide(No)),  // 1RPC
    ("response is too big", Wide(No)),       // Ankr
    ("exceeds size limit", Wide(No)),        // Ankr, Monad
    ("memory capacity exceeded", Wide(No)),  // Helios
    ("response too large", Wide(No)),        // Optimism
    // A count of blocks.
    ("requested blocks is ", Wide(After("requested blocks is "))), // thirdweb
    ("response size exceeded", Wide(No)),                          // Alchemy of old, QuickNode
    ("is limited to 0 - ", Wide(After("is limited to 0 - "))),     // 1RPC
    ("limited to a ", Wide(After("limited to a "))), // QuickNode, Base, Optimism, Blast, Berachain, Monad
    ("is limited to ", Wide(After("is limited to "))), // BlockPI
    ("max range: ", Wide(After("max range: "))),     // Cloudflare, Polygon zkEVM, Merlin
    ("maximum block range: ", Wide(After("maximum block range: "))), // publicnode, BSC, geth, Immutable
    ("max block range: ", Wide(After("max block range: "))),         // Tron
    ("max block range = ", Wide(After("max block range = "))),       // Morph
    ("max block range ", Wide(After("max block range "))), // reth, Hyperliquid, Pocket, Celo
    ("max blocks ", Wide(After("max blocks "))),           // Celo of old
    ("blocks distance: ", Wide(After("blocks distance: "))), // Cronos, Kava, TAC
    ("too wide (maximum ", Wide(After("too wide (maximum "))), // Moonbeam and other Frontier chains
    ("ranges over ", Wide(After("ranges over "))),         // dRPC, whose number is too high
    ("narrow your filter: ", Wide(After("narrow your filter: "))), // Erigon, dRPC, Pocket
    ("maximum is set to ", Wide(After("maximum is set to "))), // Avalanche, Flare
    ("too wide blocks range", Wide(After("the limit is "))), // Sonic
    ("exceeds the maximum of ", Wide(After("exceeds the maximum of "))), // Nethermind
    ("block range greater than ", Wide(After("block range greater than "))), // Mantle, Swell
    ("exceeds the limit of ", Wide(After("exceeds the limit of "))), // Ronin
    ("exceeds limit of ", Wide(After("exceeds limit of "))), // Infura, Linea, MEV Blocker
    ("bigger than range limit ", Wide(After("bigger than range limit "))), // Tenderly, thirdweb
    ("too large, max is ", Wide(After("too large, max is "))), // LlamaNodes, merkle
    ("exceeds the range allowed for your plan", Wide(After("> "))), // Blast, paid
    ("limit the query to at most ", Wide(After("limit the query to at most "))), // Coinbase
    ("query range must not exceed ", Wide(After("query range must not exceed "))), // blockrazor
    ("maximum allowed is ", Wide(After("maximum allowed is "))),
    ("smaller than size ", Wide(After("smaller than size "))), // Harmony
    ("maxallowedrange", Wide(After("maxallowedrange\":"))),    // Taiko
    ("max allowed range: ", Wide(After("max allowed range: "))), // eRPC
    ("block range exceeds ", Wide(After("block range exceeds "))), // Somnia
    ("with up to a ", Wide(After("with up to a "))),           // Aurora
    ("exceeded max allowed", Wide(No)),                        // eRPC
    ("range threshold exceeded", Wide(No)),                    // eRPC, Valtitude
    ("maximum rpc range limit", Wide(No)),                     // Besu
    ("exceeds maximum range limit", Wide(No)),                 // Besu of old
    ("bigger than maxblockrange", Wide(No)),                   // Scroll
    ("block range limit exceeded", Wide(No)),                  // Chainstack
    ("block range is too wide", Wide(No)),                     // Ankr
    ("block range is too large", Wide(No)),                    // Optimism
    ("block range too large", Wide(No)),                       // Base
    ("block range too high", Wide(No)),                        // Candle
    ("range of parameters is not supported", Wide(No)),        // publicnode
    // Time.
    ("timeout", Slow),   // geth: "query timeout exceeded"
    ("timed out", Slow), // Chainstack, LinkPool: "request timed out"
    ("timedout", Slow),  // QuickNode
    ("deadline exceeded", Slow),
    // Said of load, and of ranges.
    ("no backend is currently healthy", Undecided), // Base
];

/// What a node's words mean.
pub(super) fn read(error: &NodeError, asked: Asked) -> Refusal {
    if error.revert_reason().is_some() || error.is_unknown_block() {
        return Refusal::Other;
    }
    let words = words(error);
    let row = TABLE.iter().find(|(text, _)| words.contains(text)).map(|(_, means)| *means);
    match row {
        Some(Never) => Refusal::Other,
        Some(Busy) => Refusal::Busy,
        Some(Slow) if asked.is_one() => Refusal::Busy,
        Some(Slow) => Refusal::TooWide { blocks: None, to: pair(&words, asked) },
        Some(Wide(hint)) => match hint {
            No => Refusal::TooWide { blocks: None, to: None },
            Pair => Refusal::TooWide { blocks: None, to: pair(&words, asked) },
            After(marker) => Refusal::TooWide { blocks: width(&words, marker), to: None },
        },
        Some(Undecided) => Refusal::Undecided,
        // EIP-1474 gives −32005 the words "limit exceeded". BSC's public nodes say so of a range.
        None if error.code == -32005 && words.contains("limit exceeded") => Refusal::Undecided,
        None if error.is_busy() => Refusal::Busy,
        None if asked.is_one() => Refusal::Other,
        None => Refusal::TooWide { blocks: None, to: None },
    }
}

/// The message and the whole of the data, in lower case: either can have what the other lacks.
fn words(error: &NodeError) -> String {
    let data = match &error.raw {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => error.data.clone().unwrap_or_default(),
    };
    let read = |text: &str| text.chars().take(WORDS_CHARS_MAX).collect::<String>();
    format!("{} {}", read(&error.message), read(&data)).to_lowercase()
}

/// The upper end of a pair of heights that begins where we asked and is narrower.
fn pair(words: &str, asked: Asked) -> Option<u64> {
    let fits =
        |(from, to): (u64, u64)| (from == asked.from && to >= from && to < asked.to).then_some(to);
    bracketed(words)
        .and_then(fits)
        .or_else(|| dashed(words).and_then(fits))
        .or_else(|| members(words).and_then(fits))
}

/// `[0x1, 0xff]`
fn bracketed(words: &str) -> Option<(u64, u64)> {
    let (_, rest) = words.split_once("[0x")?;
    let (from, rest) = rest.split_once(',')?;
    let (to, _) = rest.split_once(']')?;
    Some((hex(from)?, hex(to)?))
}

/// `range 1-255`
fn dashed(words: &str) -> Option<(u64, u64)> {
    let (_, rest) = words.split_once("range ")?;
    let (from, rest) = rest.split_once('-')?;
    let digits = rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    // The words before may have a range of their own.
    match from.parse() {
        Ok(from) => Some((from, digits.parse().ok()?)),
        Err(_) => dashed(from_last_range(words)?),
    }
}

/// What begins at the last `range `, if that is not the first.
fn from_last_range(words: &str) -> Option<&str> {
    let first = words.find("range ")?;
    let last = words.rfind("range ")?;
    (last > first).then(|| words.get(last..)).flatten()
}

/// `"from":"0x1",…,"to":"0xff"`
fn members(words: &str) -> Option<(u64, u64)> {
    let member = |name: &str| {
        let (_, rest) = words.split_once(name)?;
        hex(rest.split_once('"')?.0)
    };
    Some((member("\"from\":\"")?, member("\"to\":\"")?))
}

fn hex(text: &str) -> Option<u64> {
    let text = text.trim();
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

/// The number right behind a marker: `10,000`, `10_000`, `10k`, in blocks.
fn width(words: &str, marker: &str) -> Option<u64> {
    let (_, rest) = words.split_once(marker)?;
    let skipped = rest.char_indices().find(|(_, c)| c.is_ascii_digit())?.0;
    let is_near = skipped <= NUMBER_REACH && !rest.get(..skipped)?.contains('-');
    let rest = rest.get(skipped..).filter(|_| is_near)?;
    let mut number = 0_u64;
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        match c.to_digit(10) {
            Some(digit) => number = number.checked_mul(10)?.checked_add(u64::from(digit))?,
            // A separator stands between digits; else it ends the sentence.
            None if ",._".contains(c) && chars.peek().is_some_and(char::is_ascii_digit) => {}
            None if c == 'k' => {
                number = number.checked_mul(1000)?;
                break;
            }
            None => break,
        }
    }
    (1..=WIDTH_MAX).contains(&number).then_some(number)
}

#[cfg(test)]
#[path = "range_errors_tests.rs"]
mod tests;
