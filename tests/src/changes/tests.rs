use super::*;

#[test]
fn an_episode_is_made_again_from_its_number() {
    let texts = |number| {
        let steps = episode(7, number).steps;
        let texts: Vec<String> = steps.iter().map(Step::script).collect();
        texts
    };
    assert_eq!(texts(3), texts(3));
    assert_ne!(texts(3), texts(4));
}

#[test]
fn an_episode_leaves_no_transaction_open() {
    for number in 0..200 {
        let mut open = false;
        for step in episode(67, number).steps {
            match step.text.as_str() {
                "begin" => open = true,
                "commit" | "rollback" => open = false,
                _ => {}
            }
        }
        assert!(!open, "episode {number}");
    }
}

#[test]
fn parameters_are_counted_without_gaps() {
    for number in 0..200 {
        for step in episode(67, number).steps {
            let Some(parameters) = &step.parameters else {
                continue;
            };
            for place in 1..=parameters.len() {
                let name = format!("${place}");
                assert!(step.text.contains(&name), "{name} in {}", step.text);
            }
        }
    }
}
