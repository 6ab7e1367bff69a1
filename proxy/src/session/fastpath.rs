//! The function call protocol (manual, "Function Call"), which clients use for large objects: those are
//! on the home shard, so calls of their functions go there as they are. It is answered like a query.

use automator67_planner::{catalog::Residue, plan::SessionEffects};

use super::{Session, execute::aborted};
use crate::{
    error::{Outcome, Report, sqlstate},
    frame::Frame,
    message::Reader,
    server::relay,
};

/// OIDs of the functions that read and write large objects, the same in every version (`pg_proc.dat`):
/// lo_create, lo_open, lo_close, loread, lowrite, lo_lseek, lo_creat, lo_tell, lo_unlink, lo_truncate,
/// and those for 64 bits: lo_lseek64, lo_tell64, lo_truncate64; lo_from_bytea, lo_get (two), lo_put.
const OF_LARGE_OBJECTS: &[u32] = &[
    715, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171, 3172, 3457, 3458, 3459, 3460,
];

impl Session {
    /// FunctionCall: its answer, then ReadyForQuery.
    pub(super) async fn function_call(&mut self, frame: Frame) -> Outcome {
        self.began = std::time::Instant::now();
        let result = self.call_at_home(&frame).await;
        self.end_query(result).await
    }

    async fn call_at_home(&mut self, frame: &Frame) -> Outcome {
        let function = Reader::new(frame.body()).int32()? as u32;
        if self.transaction.is_failed() {
            return Err(aborted());
        }
        if !OF_LARGE_OBJECTS.contains(&function) {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "the function call protocol is supported for functions of large objects only",
            )
            .detail(format!("The function's OID is {function}."))
            .hint("Call the function with SELECT.")
            .into());
        }
        self.residue = Residue::NONE;
        let index = self.link(self.home()).await?;
        let writes = SessionEffects {
            writes: true,
            ..SessionEffects::default()
        };
        self.note_effects(index, writes)?;
        let server = &mut self.links[index].server;
        server.function_call(&frame.bytes);
        let relayed = relay::exchange(&mut self.client, server).await?;
        self.hidden_error(index)?;
        relayed.told()?;
        Ok(())
    }
}
