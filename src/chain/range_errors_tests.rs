//! One line per text that a provider really says.

use super::*;
use serde_json::json;

const ASKED: Asked = Asked { from: 0x1000, to: 0x1000 + 999_999 };
const ONE: Asked = Asked { from: 7, to: 7 };

fn error(code: i64, message: &str) -> NodeError {
    NodeError { code, message: message.to_owned(), data: None, raw: None }
}

fn with_data(message: &str, data: Value) -> NodeError {
    NodeError { code: -32602, message: message.to_owned(), data: None, raw: Some(data) }
}

fn blocks(count: u64) -> Refusal {
    Refusal::TooWide { blocks: Some(count), to: None }
}

fn upto(to: u64) -> Refusal {
    Refusal::TooWide { blocks: None, to: Some(to) }
}

const WIDE: Refusal = Refusal::TooWide { blocks: None, to: None };

#[test]
fn a_pair_of_heights_is_read_where_it_begins_as_asked_and_is_narrower() {
    for text in [
        "Log response size exceeded. You can make eth_getLogs requests with up to a 2K block range and no \
         limit on the response size, or you can request any block range with a cap of 10K logs in the \
         response. Based on your parameters and the response size limit, this block range should work: \
         [0x1000, 0x10ff]",
        "Under the Free tier plan, you can make eth_getLogs requests with up to a 10 block range. Based on \
         your parameters, this block range should work: [0x1000, 0x10ff]. Upgrade to PAYG for expanded \
         block range.",
        "You can make eth_getLogs requests with up to a 500 block range. Based on your parameters, this \
         block range should work: [0x1000, 0x10ff]",
        "Query timeout exceeded. Consider reducing your block range. Based on your parameters and the \
         response size limit, this block range should work: [0x1000, 0x10ff]",
        "query returned more than 10000 results. Try with this block range [0X1000, 0X10FF].",
        "query exceeds max results 20000, retry with the range 4096-4351",
    ] {
        assert_eq!(read(&error(-32602, text), ASKED), upto(0x10ff), "{text}");
    }
    // Everything is in the data.
    let text =
        "Query returned more than 50000 results. Try with this block range [0x1000, 0x10ff].";
    assert_eq!(read(&with_data("invalid params", json!(text)), ASKED), upto(0x10ff));
    let data = json!({ "from": "0x1000", "limit": 10000, "to": "0x10ff" });
    let said = with_data("query returned more than 10000 results. Try with this block range", data);
    assert_eq!(read(&said, ASKED), upto(0x10ff));
    // Outside, backward, equal, huge, and of another start.
    for pair in [
        "[0x0, 0x10ff]",
        "[0x1000, 0x0]",
        "[0x1000, 0xf523f]",
        "[0x1000, 0xffffffffffffffffff]",
        "[0x,]",
        "[0x1001, 0x10ff]",
        "[",
        "[0x1000",
        "4096-",
        "4096-4095",
        "-1-5",
    ] {
        let text = format!("this block range should work: {pair} retry with the range {pair}");
        assert_eq!(read(&error(-32602, &text), ASKED), WIDE, "{pair}");
    }
}

#[test]
fn a_width_is_read_beside_its_words() {
    for (wanted, text) in [
        (10_000, "eth_getLogs is limited to a 10,000 range"),
        (10_000, "eth_getLogs and eth_newFilter are limited to a 10,000 blocks range"),
        (5, "eth_getLogs is limited to a 5 range, upgrade from discover plan"),
        (50, "eth_getLogs is limited to 0 - 50 blocks range"),
        (
            1024,
            "eth_getLogs is limited to 1024 block range. Please check the parameter requirements",
        ),
        (800, "Invalid eth_getLogs request. 'fromBlock'-'toBlock' range too large. Max range: 800"),
        (50_000, "exceed maximum block range: 50000"),
        (5000, "exceeded maximum block range: 5000"),
        (10_000, "range 1000000 exceeds limit of 10000"),
        (10_000, "maximum [from, to] blocks distance: 10000"),
        (1024, "block range is too wide (maximum 1024)"),
        (10_000, "ranges over 10000 blocks are not supported on free plan"),
        (10_000, "ranges over 10000 blocks are not supported on freetier"),
        (1000, "query block range exceeds server limit, narrow your filter: 1000"),
        (2048, "requested too many blocks from 0 to 16777216, maximum is set to 2048"),
        (100, "too wide blocks range, the limit is 100"),
        (100_000, "query exceeds max block range 100000"),
        (
            10_000,
            "Block range 50000 exceeds the maximum of 10000 blocks per logs request. Use a narrower \
             fromBlock/toBlock range or increase Receipt.MaxBlockDepth.",
        ),
        (10_000, "block range too large, max range: 10000"),
        (5000, "query exceeds range, retry smaller (max block range 5000, got 16777216)"),
        (1000, "query exceeds range, retry smaller (max blocks 1000)"),
        (10_000, "block range greater than 10000 max"),
        (
            5000,
            "block range is larger than max block range, block range = 5120, max block range = 5000",
        ),
        (1000, "eth_getLogs range is too large, max is 1k blocks"),
        (500, "exceeds the range allowed for your plan (4000 > 500)"),
        (300, "please limit the query to at most 300 blocks"),
        (1000, "Log response size exceeded. Maximum allowed number of requested blocks is 1000"),
        (25, "log query range must not exceed 25 blocks"),
        (50, "Block range too large: maximum allowed is 50 blocks on your current plan."),
        (1024, "GetLogs query must be smaller than size 1024"),
        (90, "block range exceeds 90"),
        (70, "eth_getLogs with up to a 70 block range"),
        (60, "exceed max block range: 60"),
        (40, "getLogs request exceeded max allowed range: 40"),
    ] {
        assert_eq!(read(&error(-32000, text), ASKED), blocks(wanted), "{text}");
    }
    let ronin =
        "requested block range 16777217 exceeds the limit of 200; narrow your fromBlock/toBlock";
    assert_eq!(read(&with_data("Invalid params", json!(ronin)), ASKED), blocks(200));
    let payload = "range 9009594 is bigger than range limit 2000";
    let data = json!({ "error_id": "4f", "payload": payload });
    assert_eq!(read(&with_data("invalid params", data), ASKED), blocks(2000));
    let data = json!({ "details": { "maxAllowedRange": 512 } });
    assert_eq!(read(&with_data("range", data), ASKED), blocks(512));
}

#[test]
fn what_has_no_width_is_too_wide_without_one() {
    for (code, text) in [
        (-32600, "block range is too wide"),
        (-32005, "Requested range exceeds maximum RPC range limit"),
        (-32000, "Requested range exceeds maximum range limit"),
        (-32000, "block range is bigger than maxBlockRange"),
        (-32005, "Block range limit exceeded."),
        (-32000, "block range too large"),
        (-32000, "logs matched by query exceeds limit of 10000"),
        (-32000, "query returned more than allowed number of logs, try with smaller block range"),
        (-32602, "query returns too many logs, narrow your filter: 20000"),
        (-32000, "response size should not greater than 2097152 bytes"),
        (-32000, "query exceeds max results 10000"),
        (-32005, "query returned more than 10000 results"),
        (-32000, "query exceeds limit of 10000 logs"),
        (-32000, "Response is too big"),
        (-32616, "response size exceeded"),
        (-32000, "backend response too large"),
        (-32602, "Log response size exceeded. Please reduce query block range."),
        (-32701, "This range of parameters is not supported"),
        (-32000, "query timeout exceeded"),
        (-32002, "request timed out"),
        (-32000, "log query timed out"),
        (-32000, "[QUICKNODE fallback] The request timedout after 4000 ms"),
        (-32000, "context deadline exceeded"),
        (-32602, "invalid params"),
        (-32603, "a text that nobody has seen yet"),
        // A number that is none.
        (-32000, "exceed maximum block range: 0"),
        (-32000, "exceed maximum block range: -5 or so, 100"),
        (-32000, "exceed maximum block range: 99999999999999999999999999"),
        (-32000, "exceed maximum block range: "),
    ] {
        assert_eq!(read(&error(code, text), ASKED), WIDE, "{text}");
    }
}

#[test]
fn quotas_are_busy_whatever_they_say_of_ranges() {
    for (code, text) in [
        (-32005, "rate limit exceeded"),
        (-32005, "project ID request rate exceeded"),
        (-32005, "daily request count exceeded, request rate limited"),
        (-32001, "Exceeded the quota usage"),
        (429, "Too Many Requests"),
        (-32000, "You reached Public endpoint rate limit"),
        (-32008, "per-minute request limit reached"),
        (-32007, "15/second request limit reached - reduce calls per second"),
        (-32011, "network connection issue"),
        (429, "Your app has exceeded its compute units per second capacity."),
        (-32000, "Monthly capacity limit exceeded"),
        (-32000, "you have reached the free tier of your plan"),
        (-32603, "service temporarily unavailable"),
        (-32000, "rate limit exceeded: try a smaller range"),
    ] {
        assert_eq!(read(&error(code, text), ASKED), Refusal::Busy, "{text}");
        assert_eq!(read(&error(code, text), ONE), Refusal::Busy, "{text}");
    }
}

#[test]
fn a_bare_limit_is_decided_by_asking_for_half() {
    for text in ["limit exceeded", "no backend is currently healthy to serve traffic"] {
        assert_eq!(read(&error(-32005, text), ASKED), Refusal::Undecided, "{text}");
    }
}

#[test]
fn what_is_not_there_is_not_made_smaller() {
    for text in [
        "header not found",
        "block range extends beyond current head block",
        "requested block range [1, 9] is beyond latest executed block 5 (node is still syncing)",
        "invalid block range params",
        "pruned history unavailable",
        "Archive requests require a personal token.",
        "the method eth_getLogs does not exist/is not available",
        "Please specify an address in your request or, to remove restrictions, order a dedicated node",
        "Please, specify less number of addresses",
    ] {
        assert_eq!(read(&error(-32602, text), ASKED), Refusal::Other, "{text}");
    }
}

#[test]
fn one_block_is_too_wide_only_in_known_words() {
    assert_eq!(read(&error(-32602, "query exceeds max results 20000"), ONE), WIDE);
    assert_eq!(read(&error(-32602, "invalid params"), ONE), Refusal::Other);
    assert_eq!(read(&error(-32000, "query timeout exceeded"), ONE), Refusal::Busy);
}

#[test]
fn megabytes_of_words_are_not_read() {
    let text = format!("{}rate limit", "x".repeat(1024 * 1024));
    assert_eq!(read(&error(-32000, &text), ASKED), WIDE);
}
