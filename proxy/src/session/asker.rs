//! Who asks: what a client would hear of itself from one Postgres that it is connected to.

use std::net::SocketAddr;

use automator67_planner::plan::{AskerCall, AskerFunction};

use super::{Session, planning::Request, sequences::not_rewritten};
use crate::{error::Outcome, guc, telemetry::Tier};

impl Session {
    /// A statement with calls that ask about the client: it runs with the answers in their place.
    pub(super) async fn with_asker(
        &mut self,
        calls: &[AskerCall],
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let (from, to) = request.planned.span;
        let whole = request.whole;
        let mut text = String::with_capacity(to - from + 64 * calls.len());
        let mut at = from;
        for call in calls {
            let (start, end) = call.span;
            text.push_str(whole.get(at..start).ok_or_else(not_rewritten)?);
            let answer = self.about_client(call.function, whole);
            if call.is_output {
                // An output without an alias has its name from what stands in it.
                text.push_str(&format!("(SELECT {answer} AS {})", call.function.name()));
            } else {
                text.push_str(&answer);
            }
            at = end;
        }
        text.push_str(whole.get(at..to).ok_or_else(not_rewritten)?);
        self.run_rewritten(&text, request).await
    }

    fn about_client(&self, function: AskerFunction, whole: &str) -> String {
        let client: Option<SocketAddr> = self.card.client.parse().ok();
        match function {
            AskerFunction::Address => match client {
                Some(client) => format!("'{}'::inet", client.ip()),
                None => "NULL::inet".to_owned(),
            },
            AskerFunction::Port => match client {
                Some(client) => format!("'{}'::integer", client.port()),
                None => "NULL::integer".to_owned(),
            },
            AskerFunction::Query => format!("{}::text", guc::quote_literal(whole)),
            AskerFunction::Process => format!("'{}'::integer", self.card.pid),
        }
    }
}
