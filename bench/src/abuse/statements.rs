//! Statements with very many parts: what they cost by themselves, beside one plain Postgres, and what
//! they cost the others.

use std::time::Duration;

use anyhow::Result;
use automator67_tests::batch::Batch;

use super::{Answer, Book, Ground, ask, bystander::beside, duration, middle};

const BYSTANDER_MAX: Duration = Duration::from_millis(50);
const RATIO_MAX: f64 = 2.0;
/// What takes longer is not asked a second time.
const LONG: Duration = Duration::from_secs(5);

struct Statement {
    name: &'static str,
    /// The bystander's longest wait, the statement's own time.
    then: [&'static str; 2],
    batch: Batch,
}

/// Every statement, on the proxy beside the bystander, and on plain Postgres with the same disturbance.
pub fn measure(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    for statement in statements() {
        let Statement { name, then, batch } = &statement;
        let mut longest = Vec::new();
        let mut answers = Vec::new();
        let mut plain = Vec::new();
        for _ in 0..ground.common.rounds {
            let (answer, felt) =
                beside(ground, || ask(&ground.proxy(), |it| it.send(batch.bytes())))?;
            let (answer_of_plain, _) =
                beside(ground, || ask(&ground.plain(), |it| it.send(batch.bytes())))?;
            let enough = answer.took > LONG;
            longest.push(felt);
            answers.push(answer);
            plain.push(answer_of_plain);
            if enough {
                break;
            }
        }
        let worst = longest.iter().max_by_key(|felt| felt.max);
        if let Some(felt) = worst {
            book.row(
                &format!("{name}: bystander's longest wait"),
                then[0],
                felt.describe(felt.max),
                "≤ 50 ms",
                felt.is_within(felt.max, BYSTANDER_MAX),
            );
        }
        itself(name, then[1], &answers, &plain, book)?;
    }
    Ok(())
}

fn itself(
    name: &str,
    then: &str,
    answers: &[Answer],
    plain: &[Answer],
    book: &mut Book,
) -> Result<()> {
    let time = |answers: &[Answer]| -> Result<Duration> {
        middle(&mut answers.iter().map(|it| it.took).collect::<Vec<_>>())
    };
    let (ours, theirs) = (time(answers)?, time(plain)?);
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    let error = |answers: &[Answer]| answers.iter().find_map(|it| it.error.clone());
    let words = |answers: &[Answer]| error(answers).map_or(String::new(), |it| format!(" ({it})"));
    let limited = answers.iter().any(Answer::is_program_limit);
    let same_end = error(answers).is_none() || error(answers) == error(plain);
    book.row(
        &format!("{name}: the statement itself"),
        then,
        format!(
            "{}{}, {ratio:.1} x plain's {}{}",
            duration(ours),
            words(answers),
            duration(theirs),
            words(plain)
        ),
        "≤ 2 x plain, or 54000",
        limited || (same_end && ratio <= RATIO_MAX),
    );
    Ok(())
}

fn statements() -> Vec<Statement> {
    let list = |count: u32| {
        let values: Vec<String> = (1..=count).map(|value| value.to_string()).collect();
        format!(
            "select count(*) from accounts where id in ({})",
            values.join(", ")
        )
    };
    let terms: String = (1..50_000)
        .map(|term| format!(" and balance <> {term}"))
        .collect();
    let deep = 20_000;
    let comments = format!("{}{} select 1", "/*".repeat(deep), "*/".repeat(deep));
    let parameters: Vec<String> = (1..=u16::MAX).map(|number| format!("${number}")).collect();
    let parameters = format!(
        "select count(*) from accounts where id in ({})",
        parameters.join(", ")
    );
    let values: Vec<String> = (1..=u16::MAX).map(|value| value.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let query = |text: &str| Batch::new().query(text);
    vec![
        Statement {
            name: "`id in (…)` of 40,000",
            then: ["3.8 s", "4.1 s"],
            batch: query(&list(40_000)),
        },
        Statement {
            name: "`id in (…)` of 100,000",
            then: ["27 s", "28 s"],
            batch: query(&list(100_000)),
        },
        Statement {
            name: "65,535 parameters",
            then: ["3.8 s", "6.5 s, 08P01"],
            batch: Batch::new().run(&parameters, &values).sync(),
        },
        Statement {
            name: "50,000 `and` terms",
            then: ["389 ms", "606 ms"],
            batch: query(&format!("select balance from accounts where id = 1{terms}")),
        },
        Statement {
            name: "20,000 nested comments",
            then: ["2.0 s", "4.6 s"],
            batch: query(&comments),
        },
    ]
}
