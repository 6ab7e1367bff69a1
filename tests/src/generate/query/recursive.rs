//! WITH RECURSIVE.

use super::{Output, Query};
use crate::generate::{Common, Expression, Generator, schema::Type};

impl Generator {
    pub(super) fn recursive(&mut self) -> String {
        let name = self.alias("r");
        let (text, first) = match self.random.below(3) {
            0 => {
                let start = self.random.between(1, 30);
                let text = format!(
                    "{name}(c1, c2) as (select id, 1 from account where id = {start} \
                     union all select a.id, {name}.c2 + 1 from account a join {name} \
                     on a.parent_id = {name}.c1 where {name}.c2 < 4)"
                );
                (text, Type::Int8)
            }
            1 => {
                let start = self.literal(Type::Int8).text;
                let text = format!(
                    "{name}(c1, c2) as (select account_id, 0 from note where account_id < {start} \
                     union select a.parent_id, {name}.c2 + 1 from {name}, account a \
                     where a.id = {name}.c1 and {name}.c2 < 5)"
                );
                (text, Type::Int8)
            }
            _ => {
                let text = format!(
                    "{name}(c1, c2) as (select 1, 1 union all select c1 + 1, \
                     (select count(*)::int4 from word w where w.n = {name}.c1) \
                     from {name} where c1 < {})",
                    self.random.between(3, 9)
                );
                (text, Type::Int4)
            }
        };
        let output = |number: usize, kind: Type| Output {
            value: Expression::new("", kind),
            name: format!("c{number}"),
            distinct: 10.0,
        };
        let query = Query {
            text: String::new(),
            columns: vec![output(1, first), output(2, Type::Int4)],
            identity: None,
            rows: 30.0,
            ordered: false,
        };
        self.commons.push(Common { name, query });
        text
    }
}
