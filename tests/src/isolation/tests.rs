use super::{Action, Preparation, parse};

#[test]
fn a_file_is_read() {
    let text = "\
# a comment
once: create table t (id int)
distribute: t by id, r reference, l local
setup: delete from t

case: one waits
victim: 40P01
refused: 0A000 apart
1: begin
2: select v
  from t order by 1 -- waits 40001
wait: 2
";
    let file = parse("x", text).expect("valid");
    assert_eq!(file.once.len(), 3);
    let case = &file.cases[0];
    assert_eq!(case.setup, [Preparation::Sql("delete from t".to_owned())]);
    assert_eq!(case.victim.as_deref(), Some("40P01"));
    assert_eq!(case.steps.len(), 3);
    let step = &case.steps[1];
    assert!(step.waits && step.sqlstate.as_deref() == Some("40001"));
    assert_eq!(
        step.action,
        Action::Run {
            text: "select v\nfrom t order by 1".to_owned(),
            ordered: true
        }
    );
    assert_eq!(case.steps[2].action, Action::Await);
}

#[test]
fn what_is_wrong_is_told() {
    for text in [
        "1: begin",
        "case: x\n1: begin -- sleeps",
        "case: x\nzero: begin",
        "case: x\nonce: begin",
        "case: x\nrefused: several",
        "case: x\ndistribute: t",
        "case",
    ] {
        assert!(parse("x", text).is_err(), "{text}");
    }
}
