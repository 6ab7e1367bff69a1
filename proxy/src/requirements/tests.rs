use super::*;

fn facts(number: u32) -> (u32, Facts) {
    let facts = Facts {
        shard: format!("s{number}"),
        address: format!("db{number}:5432"),
        version: 150_004,
        place: format!("place {number}"),
        identity: None,
        home_of: None,
        prepared_max: 100,
        collation: [("collate".to_owned(), "C".to_owned())].into(),
        extensions: [("plpgsql".to_owned(), "1.0".to_owned())].into(),
        role: "app".to_owned(),
        may_create: true,
        database: "app".to_owned(),
    };
    (number, facts)
}

/// Three servers; those of a cluster know who they are.
fn three(cluster: Option<&str>) -> Vec<(u32, Facts)> {
    let mut all: Vec<_> = (1..=3).map(facts).collect();
    if let Some(cluster) = cluster {
        all[0].1.home_of = Some(cluster.to_owned());
        for (id, facts) in &mut all {
            let (cluster, shard) = (cluster.to_owned(), *id);
            facts.identity = Some(Identity { cluster, shard });
        }
    }
    all
}

fn judge(all: &[(u32, Facts)]) -> Result<(), String> {
    let names = ["s1", "s2", "s3"].map(str::to_owned);
    let judged = known(all, &names)
        .and_then(|()| all.iter().try_for_each(|(_, facts)| may_create(facts)))
        .and_then(|()| prepared(all))
        .and_then(|()| alike(all));
    judged.map_err(|unfit| unfit.to_string())
}

fn check(all: &[(u32, Facts)], words: &[&str]) {
    let told = judge(all).expect_err(words[0]);
    for word in words.iter().chain(&["change that: "]) {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
}

fn swap(all: &mut [(u32, Facts)], one: usize, other: usize) {
    let identity = all[one].1.identity.clone();
    all[one].1.identity = std::mem::replace(&mut all[other].1.identity, identity);
    let home_of = all[one].1.home_of.clone();
    all[one].1.home_of = std::mem::replace(&mut all[other].1.home_of, home_of);
}

#[test]
fn new_and_known_servers_will_do() {
    assert_eq!(judge(&three(None)), Ok(()));
    assert_eq!(judge(&three(Some("aa"))), Ok(()));
    // One cannot be reached.
    let mut two = three(Some("aa"));
    two.remove(1);
    assert_eq!(judge(&two), Ok(()));
    // One is new, or of a version that wrote no identity.
    let mut all = three(Some("aa"));
    all[2].1.identity = None;
    assert_eq!(judge(&all), Ok(()));
}

#[test]
fn one_server_twice_is_refused() {
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        let mut all = three(None);
        all[other].1.place = all[one].1.place.clone();
        let names = [all[one].1.shard.clone(), all[other].1.shard.clone()];
        check(
            &all,
            &[&names[0], &names[1], "the same database of the same server"],
        );
    }
}

#[test]
fn swapped_servers_are_refused() {
    let mut all = three(Some("aa"));
    swap(&mut all, 1, 2);
    check(
        &all,
        &["server of shard \"s2\"", "is shard \"s3\" of cluster aa"],
    );
    let mut all = three(Some("aa"));
    swap(&mut all, 0, 1);
    check(
        &all,
        &["server of shard \"s1\"", "is shard \"s2\" of cluster aa"],
    );
    // As a version that wrote no identity has left them.
    for (_, facts) in &mut all {
        facts.identity = None;
    }
    check(
        &all,
        &["server of shard \"s2\"", "is the home shard of cluster aa"],
    );
}

#[test]
fn servers_of_others_are_refused() {
    let mut all = three(Some("aa"));
    all[1].1.identity = three(Some("bb"))[1].1.identity.clone();
    check(&all, &["\"s2\"", "shard 2 of another cluster, bb"]);
    let mut all = three(None);
    all[2].1.identity = three(Some("bb"))[2].1.identity.clone();
    check(&all, &["\"s3\"", "shard 3 of another cluster, bb"]);
}

#[test]
fn servers_that_differ_are_refused() {
    let mut all = three(None);
    all[1].1.version = 170_002;
    check(
        &all,
        &[
            "version of Postgres is 15 on shard \"s1\" and 17 on shard \"s2\"",
            "mixed_versions",
        ],
    );
    let mut all = three(None);
    all[2].1.collation = [("collate".to_owned(), "de_DE".to_owned())].into();
    check(
        &all,
        &["collate is C on shard \"s1\" and de_DE on shard \"s3\""],
    );
    let mut all = three(None);
    all[1]
        .1
        .extensions
        .insert("hstore".to_owned(), "1.8".to_owned());
    check(
        &all,
        &[
            "hstore is not there",
            "on shard \"s1\": create extension hstore version '1.8'",
        ],
    );
    let mut all = three(None);
    all[0]
        .1
        .extensions
        .insert("hstore".to_owned(), "1.8".to_owned());
    check(
        &all,
        &["on shard \"s2\": create extension hstore version '1.8'"],
    );
    let mut all = three(None);
    all[1]
        .1
        .extensions
        .insert("plpgsql".to_owned(), "2".to_owned());
    check(
        &all,
        &["on shard \"s2\": alter extension plpgsql update to '1.0'"],
    );
}

#[test]
fn what_every_statement_needs_is_said() {
    let mut all = three(None);
    all[1].1.prepared_max = 0;
    assert_eq!(judge(&all), Ok(()));
    all[2].1.prepared_max = 0;
    check(
        &all,
        &[
            "\"s2\" (db2:5432), \"s3\"",
            "max_prepared_transactions = 100",
        ],
    );
    let mut all = three(None);
    all[0].1.may_create = false;
    check(
        &all,
        &[
            "role \"app\"",
            "grant create on database \"app\" to \"app\"",
        ],
    );
}

#[test]
fn places_for_prepared_transactions() {
    let (_, mut facts) = facts(1);
    assert!(!is_short_of_places(&facts, 100));
    assert!(is_short_of_places(&facts, 101));
    // None at all is another matter: see `prepared`.
    facts.prepared_max = 0;
    assert!(!is_short_of_places(&facts, 101));
}
