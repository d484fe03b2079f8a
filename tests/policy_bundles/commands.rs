//! `claviger policy diff`, `explain` and `replay` as programs.

use super::*;

// -- the command line ---------------------------------------------------------------------------------

fn policy(args: &[&str]) -> (i32, String, String) {
    let run = Command::new(BIN).arg("policy").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (run.status.code().unwrap(), text(run.stdout), text(run.stderr))
}

#[tokio::test]
async fn what_was_decided_is_replayed_under_another_bundle() {
    let anvil = chain().await;
    let setup = SetUp::new(&anvil.url(), None, &grants("hello "));
    let (dir, config) = (setup.dir().join("policies"), setup.config());
    let server = setup.start(&[]).await;
    server.funded_key(&anvil, "op-1").await;
    assert_eq!(sign(&server, "hello world").await.status, 201);
    assert_eq!(sign(&server, "hi world").await.status, 403);
    let paid = server.ask(SUB, "order-1", &payout(1_000)).await.ok();
    assert_eq!(server.ask(SUB, "order-2", &json!({
        "chain": "local", "signer": "payments", "to": PAYEE, "value": "2000000000000000000",
    })).await.status, 403);
    server.wait_for(paid["id"].as_str().unwrap(), &["mined", "finalized"]).await;
    server.checkpoint().await;
    let config = config.to_str().unwrap();

    // Beside the running server, by its own bundle: nothing is different.
    let (code, out, err) = policy(&["replay", dir.to_str().unwrap(), "--config", config]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("4 decision(s) judged again, 0 would come out differently"), "{out}");

    let first = in_force(&server).await;
    let other = grants("hi ").replace("per_tx = \"1.0\"", "per_tx = \"3.0\"");
    let next = files(&dir, "v2", &first, &other);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &next);
    let path = folder.path().to_str().unwrap();
    let (code, out, err) = policy(&["replay", path, "--config", config, "--json"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("3 of 4 decision(s) would come out differently"), "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let flips: Vec<(String, String)> = report["flips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flip| (text(&flip["was"]["outcome"]), text(&flip["is"]["outcome"])))
        .collect();
    let flip = |was: &str, is: &str| (was.to_owned(), is.to_owned());
    assert_eq!(flips, [flip("allow", "deny"), flip("deny", "allow"), flip("deny", "allow")]);
    assert_eq!(report["flips"][0]["is"]["reasons"][0]["field"], "text.prefix", "{report:#}");
    let (code, out, _) = policy(&["replay", path, "--config", config, "--from", "2099-01-01"]);
    assert_eq!(code, 0);
    assert!(out.contains("0 decision(s)"), "{out}");

    // The server says the same.
    let hash = text(&propose(&server, AUTHOR, &next).await.ok()["hash"]);
    let replay = format!("/{hash}/replay");
    let who = ("dev:auditor", Role::Auditor);
    let told = admin(&server, Method::POST, &replay, who, None).await.ok();
    assert_eq!((&told["flips"], &told["judged"]), (&report["flips"], &json!("4")));
    let body = json!({ "from": "2099-01-01T00:00:00Z" });
    let told = admin(&server, Method::POST, &replay, who, Some(&body)).await.ok();
    assert_eq!(told["judged"], "0");
    let body = json!({ "most": 0 });
    assert_eq!(admin(&server, Method::POST, &replay, who, Some(&body)).await.status, 400);
    server.stop().await;
}

/// The example bundle, with its files edited.
fn edited(folder: &Path, edits: &[(&str, &str, &str)]) -> String {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/payments");
    assert!(Command::new("cp").arg("-r").args([&example, folder]).status().unwrap().success());
    for (file, from, to) in edits {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        std::fs::write(folder.join(file), text.replacen(from, to, 1)).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn the_difference_between_two_folders_is_told_in_words() {
    let temp = tempfile::tempdir().unwrap();
    let old = edited(&temp.path().join("old"), &[]);
    let subjects = ("bundle.toml", "\"dev:*\"]", "\"dev:*\", \"ops:*\"]");
    let new = edited(&temp.path().join("new"), &[subjects]);
    let (code, out, err) = policy(&["diff", &old, &new]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("issuer `claviger-dev`: it may vouch for `ops:*` as approver now"),
        "{out}"
    );
    assert!(out.ends_with("the second bundle loosens\n"), "{out}");
    let (_, out, _) = policy(&["diff", &new, &old]);
    assert!(
        out.contains("newly refused:") && out.ends_with("the second bundle loosens nothing\n"),
        "{out}"
    );
    let (_, out, _) = policy(&["diff", &old, &old, "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["loosens"], &report["changes"]), (&json!(false), &json!([])));
    let (code, _, err) = policy(&["diff", &old, "/nowhere"]);
    assert_eq!(code, 1);
    assert!(err.contains("/nowhere"), "{err}");
    assert_eq!(policy(&["diff", &old]).0, 2);
}

#[test]
fn a_request_in_a_file_is_decided_and_explained() {
    let temp = tempfile::tempdir().unwrap();
    let bundle = edited(&temp.path().join("bundle"), &[]);
    let ask = |value: &str| {
        json!({
            "principal": { "iss": "claviger-dev", "sub": "svc:payouts" },
            "request": { "chain": "local", "signer": "payments", "to": PAYEE, "value": value,
                         "max_fee_per_gas": "1000000000", "max_priority_fee_per_gas": "0" },
            "facts": { "address": "0x90f79bf6eb2c4f870365e785982e1f101e93b906", "group": "payments",
                       "chain_id": 31337, "now": "2026-12-01T12:00:00Z", "codes": { PAYEE: "none" } },
        })
    };
    let file = temp.path().join("ask.json");
    let explain = |body: &Value, more: &[&str]| {
        std::fs::write(&file, body.to_string()).unwrap();
        let args = ["explain", bundle.as_str(), "--request", file.to_str().unwrap()];
        policy(&[&args, more].concat())
    };
    let (code, out, err) = explain(&ask("1000"), &[]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("svc:payouts (claviger-dev) asks: allow"), "{out}");
    assert!(out.contains("native_out amount=1000"), "{out}");
    assert!(out.contains("covered by native-payouts"), "{out}");
    assert!(out.contains("WINDOW"), "{out}");
    let (code, out, _) = explain(&ask("99000000000000000000000"), &["--json"]);
    assert_eq!(code, 0, "a denial is an answer");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["outcome"], "deny");
    let reasons = report["reasons"].as_array().unwrap();
    let nearest = reasons.iter().find(|reason| reason["grant"] == "native-payouts").unwrap();
    assert_eq!(nearest["field"], "per_tx", "{report:#}");
    assert!(report["misses"].as_array().unwrap().len() >= reasons.len(), "{report:#}");
    // Of what is allowed, only how many others miss.
    let (_, out, _) = explain(&ask("1000"), &[]);
    let hidden = out.lines().find(|line| line.contains("--all lists them")).unwrap();
    let hidden: usize = hidden.split(' ').next().unwrap().parse().unwrap();
    assert!(!out.contains("FIRST FIELD THAT FAILS"), "{out}");
    let (_, out, _) = explain(&ask("1000"), &["--all"]);
    assert!(!out.contains("--all lists them"), "{out}");
    let misses = out.lines().skip_while(|line| !line.contains("FIRST FIELD THAT FAILS")).skip(1);
    assert_eq!(misses.take_while(|line| !line.is_empty()).count(), hidden, "{out}");
    let mut unknown = ask("1");
    unknown["facts"]["codes"] = json!({});
    let (_, out, _) = explain(&unknown, &[]);
    assert!(out.contains("the code at the recipient is not known"), "{out}");
    let mut wrong = ask("1");
    wrong["facts"]["nonsense"] = json!(1);
    let (code, _, err) = explain(&wrong, &[]);
    assert_eq!(code, 1);
    assert!(err.contains("nonsense"), "{err}");
}
