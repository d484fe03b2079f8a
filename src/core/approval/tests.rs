use super::*;
use proptest::prelude::*;
use uuid::Uuid;

fn people(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn quorum(parts: &[(&str, u32)]) -> Quorum {
    parts.iter().map(|(group, many)| ((*group).to_owned(), *many)).collect()
}

fn groups() -> BTreeMap<String, BTreeSet<String>> {
    BTreeMap::from([
        ("treasury".to_owned(), people(&["ann", "bob", "cat"])),
        ("security".to_owned(), people(&["cat", "dan"])),
    ])
}

#[test]
fn a_member_of_two_groups_takes_one_place() {
    let groups = groups();
    let both = quorum(&[("treasury", 1), ("security", 1)]);
    let by = |approved: &[&'static str]| {
        Approvers::new(approved.to_vec(), "svc:x", &groups).meet(std::slice::from_ref(&both))
    };
    assert!(!by(&["cat"]));
    assert!(!by(&["ann", "bob"]));
    assert!(by(&["ann", "dan"]));
    assert!(by(&["ann", "cat"]), "cat sits for security, ann for treasury");
    assert!(by(&["cat", "dan"]), "whoever is seated first moves for the other");
    assert!(!by(&["ann", "eve"]), "who is in no group counts nowhere");
}

#[test]
fn the_requester_counts_nowhere() {
    let groups = groups();
    let one = quorum(&[("treasury", 1)]);
    assert!(!Approvers::new(["ann"], "ann", &groups).meet(std::slice::from_ref(&one)));
    assert!(Approvers::new(["ann"], "bob", &groups).meet(&[one]));
}

#[test]
fn each_quorum_is_met_by_itself_and_all_of_them_must_be() {
    let groups = groups();
    let (one, other) = (quorum(&[("treasury", 1)]), quorum(&[("security", 1)]));
    assert!(Approvers::new(["cat"], "x", &groups).meet(&[one.clone(), other.clone()]));
    assert!(!Approvers::new(["ann"], "x", &groups).meet(&[one, other]));
    // A group that the bundle does not have, and more places than there are people.
    assert!(!Approvers::new(["ann"], "x", &groups).meet(&[quorum(&[("nobody", 1)])]));
    let many = quorum(&[("treasury", u32::MAX), ("security", u32::MAX)]);
    let progress = Approvers::new(["ann", "cat"], "x", &groups).progress(&many);
    assert_eq!(progress, Progress { needed: 2 * u64::from(u32::MAX), taken: 2 });
}

fn terms<'a>(principal: &'a Principal, grants: &'a [GrantId], need: &'a ApprovalNeed) -> Terms<'a> {
    Terms {
        request: RequestId::new(Uuid::from_u128(1)),
        principal,
        key: KeyId::new(Uuid::from_u128(2)),
        address: Address::repeat_byte(3),
        asked: "asked".into(),
        effects: Value::List(vec!["one".into()]),
        grants,
        need: Some(need),
        bundle: B256::repeat_byte(4),
        expires_at: Some(Timestamp::from_millis(5)),
    }
}

#[test]
fn whatever_changes_the_hash_is_another() {
    let who = Principal { iss: "iss".to_owned(), sub: "sub".to_owned() };
    let other = Principal { iss: "is".to_owned(), sub: "ssub".to_owned() };
    let grants = [GrantId::new("a")];
    let more = [GrantId::new("a"), GrantId::new("b")];
    let need = ApprovalNeed {
        grants: vec![GrantId::new("a")],
        quorums: vec![quorum(&[("treasury", 2)])],
        ttl_ms: 1,
    };
    let fewer = ApprovalNeed { quorums: vec![quorum(&[("treasury", 1)])], ..need.clone() };
    let split =
        ApprovalNeed { quorums: vec![need.quorums[0].clone(), Quorum::new()], ..need.clone() };
    let base = terms(&who, &grants, &need);
    let all = [
        base.text(),
        Terms { request: RequestId::new(Uuid::from_u128(9)), ..base.clone() }.text(),
        Terms { principal: &other, ..base.clone() }.text(),
        Terms { key: KeyId::new(Uuid::from_u128(9)), ..base.clone() }.text(),
        Terms { address: Address::repeat_byte(9), ..base.clone() }.text(),
        Terms { asked: "aske".into(), ..base.clone() }.text(),
        Terms { effects: Value::List(vec![]), ..base.clone() }.text(),
        Terms { grants: &more, ..base.clone() }.text(),
        Terms { need: Some(&fewer), ..base.clone() }.text(),
        Terms { need: Some(&split), ..base.clone() }.text(),
        Terms { need: None, ..base.clone() }.text(),
        Terms { bundle: B256::repeat_byte(9), ..base.clone() }.text(),
        Terms { expires_at: Some(Timestamp::from_millis(6)), ..base.clone() }.text(),
        Terms { expires_at: None, ..base.clone() }.text(),
    ];
    let hashes: BTreeSet<B256> = all.iter().map(|text| hash(text)).collect();
    assert_eq!(hashes.len(), all.len(), "{all:#?}");
    assert_eq!(base.text(), base.clone().text());
}

/// Tries every way to seat people, to compare with.
fn can_sit(
    places: &[&str],
    free: &BTreeSet<&str>,
    groups: &BTreeMap<String, BTreeSet<String>>,
) -> bool {
    let Some((place, rest)) = places.split_first() else {
        return true;
    };
    free.iter().any(|person| {
        groups[*place].contains(*person) && {
            let mut left = free.clone();
            left.remove(person);
            can_sit(rest, &left, groups)
        }
    })
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn some_people() -> impl Strategy<Value = BTreeSet<String>> {
    proptest::collection::btree_set(proptest::sample::select(NAMES.to_vec()), 0..=6)
        .prop_map(|set| set.into_iter().map(str::to_owned).collect())
}

proptest! {
    #[test]
    fn a_quorum_is_met_exactly_where_different_people_can_take_all_places(
        members in proptest::collection::vec(some_people(), 3),
        counts in proptest::collection::vec(0_u32..3, 3),
        approved in some_people(),
        requester in proptest::sample::select(NAMES.to_vec()),
    ) {
        let names = ["g0", "g1", "g2"];
        let groups: BTreeMap<String, BTreeSet<String>> =
            names.iter().map(|name| (*name).to_owned()).zip(members).collect();
        let quorum: Quorum = names.iter().map(|name| (*name).to_owned()).zip(counts).collect();
        let approved: Vec<&str> = approved.iter().map(String::as_str).collect();
        let met = Approvers::new(approved.clone(), requester, &groups).meet(std::slice::from_ref(&quorum));
        let places: Vec<&str> = quorum
            .iter()
            .flat_map(|(group, many)| vec![group.as_str(); *many as usize])
            .collect();
        let free: BTreeSet<&str> = approved.iter().copied().filter(|sub| *sub != requester).collect();
        prop_assert_eq!(met, can_sit(&places, &free, &groups));
        // One approval more never makes it less.
        let mut more = approved.clone();
        more.extend(NAMES);
        let before = Approvers::new(approved, requester, &groups).progress(&quorum);
        let after = Approvers::new(more, requester, &groups).progress(&quorum);
        prop_assert!(after.taken >= before.taken && after.needed == before.needed);
    }
}
