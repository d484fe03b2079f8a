//! In what words a range of logs is refused, besides those of [`super::Provider`]: code, message, and data where
//! there is some. `{from}`, `{to}`, `{end}` (the last block that would do), `{most}` and `{wide}` (blocks) are
//! filled in; `#` before a name is for hexadecimal.

use serde_json::{Value, json};

/// The table: who says so is behind each line.
pub const WORDS: &[(i64, &str, &str)] = &[
    (-32602, "Log response size exceeded. this block range should work: [{#from}, {#end}]", ""), // Alchemy
    (-32602, "Log response size exceeded. Please reduce query block range.", ""), // Alchemy of old
    (
        -32000,
        "Query timeout exceeded. Consider reducing your block range. Based on your parameters and the response \
         size limit, this block range should work: [{#from}, {#end}]",
        "",
    ), // Alchemy
    (
        -32602,
        "invalid params",
        "Query returned more than 50000 results. Try with this block range [{#from}, {#end}].",
    ), // Gnosis
    (-32602, "query exceeds max results 20000", ""),                              // reth of old
    (-32602, "eth_getLogs is limited to 0 - {most} blocks range", ""),            // 1RPC
    (
        -32602,
        "eth_getLogs is limited to {most} block range. Please check the parameter requirements",
        "",
    ), // BlockPI
    (-32701, "exceed maximum block range: {most}", ""),                           // publicnode
    (-32000, "maximum [from, to] blocks distance: {most}", ""), // Cronos, Kava, TAC
    (35, "ranges over 10000 blocks are not supported on free plan", ""), // dRPC: the number is not true
    (-32602, "query block range exceeds server limit, narrow your filter: {most}", ""), // Erigon
    (-32000, "requested too many blocks from {from} to {to}, maximum is set to {most}", ""), // Avalanche
    (-32000, "too wide blocks range, the limit is {most}", ""), // Sonic
    (
        -32602,
        "Block range {wide} exceeds the maximum of {most} blocks per logs request. Use a narrower \
         fromBlock/toBlock range or increase Receipt.MaxBlockDepth.",
        "",
    ), // Nethermind
    (-32000, "block range too large, max range: {most}", ""),   // Polygon zkEVM
    (-32602, "query exceeds range, retry smaller (max block range {most}, got {wide})", ""), // Celo
    (-32602, "block range greater than {most} max", ""),        // Mantle
    (
        -32602,
        "Invalid params",
        "requested block range {wide} exceeds the limit of {most}; narrow your fromBlock/toBlock",
    ), // Ronin
    (
        -32000,
        "block range is larger than max block range, block range = {wide}, max block range = {most}",
        "",
    ), // Morph
    (-32000, "eth_getLogs range is too large, max is {most} blocks", ""), // LlamaNodes
    (-32000, "exceeds the range allowed for your plan ({wide} > {most})", ""), // Blast
    (-32005, "Block range limit exceeded.", ""),                // Chainstack
    (-32000, "please limit the query to at most {most} blocks", ""), // Coinbase
    (-32000, "log query range must not exceed {most} blocks", ""), // blockrazor
    (-32000, "GetLogs query must be smaller than size {most}", ""), // Harmony
    (-32005, "limit exceeded", ""),                             // BSC
    (-32000, "block range too large", ""),                      // Base
    (-32000, "backend response too large", ""),                 // Optimism
    (-32000, "logs matched by query exceeds limit of 10000", ""), // Arbitrum
    (-32000, "query returned more than allowed number of logs, try with smaller block range", ""), // PulseChain
    (-32602, "query returns too many logs, narrow your filter: 20000", ""), // Erigon
    (-32000, "response size should not greater than 2097152 bytes", ""),    // 1RPC
    (-32000, "query timeout exceeded", ""),                                 // geth
    (-32002, "request timed out", ""),                                      // Chainstack
    (-32602, "invalid params", ""),                                         // Base
    (-32000, "a sentence that no table has", ""),
];

/// The error object of a line.
pub fn error((code, message, data): (i64, &str, &str), (from, to, most): (u64, u64, u64)) -> Value {
    let end = from + most.saturating_sub(1);
    let fill = |text: &str| {
        let mut text = text.to_owned();
        let wide = to - from + 1;
        let values = [("from", from), ("to", to), ("end", end), ("most", most), ("wide", wide)];
        for (name, value) in values {
            text = text.replace(&format!("{{#{name}}}"), &format!("{value:#x}"));
            text = text.replace(&format!("{{{name}}}"), &value.to_string());
        }
        text
    };
    let mut error = json!({ "code": code, "message": fill(message) });
    if !data.is_empty() {
        error["data"] = json!(fill(data));
    }
    error
}
