//! Threads for texts that take long to plan, so that other clients of a serving thread go on.
//!
//! Each such text gets a thread of its own, with the stack that the deepest tree needs; how many
//! there are at a time is bounded, and so is how many texts wait. A plan that nobody waits for any
//! more is called off: its client has left or has cancelled it, it has taken too long, or the
//! process ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use automator67_planner::{
    Context, STACK_BYTES,
    budget::{Budget, Excess},
    catalog::{Catalog, Temporary},
    normalise::Normalised,
    plan::{PlanError, Planned},
};
use tokio::sync::{Semaphore, oneshot};

use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    settings::{Settings, User},
};

/// What threads that plan have beside the planner's own need, in bytes of stack: a session's
/// futures, polled one inside the other.
const FRAMES_BYTES: usize = 8 << 20;
/// The stack of every thread that plans, in bytes.
pub const PLANNING_STACK_BYTES: usize = STACK_BYTES + FRAMES_BYTES;

/// Texts up to this length are planned where their client is served: most take less than a
/// millisecond.
const INLINE_TEXT_BYTES_MAX: usize = 8 << 10;
/// Steps of a plan that is made there, some milliseconds' worth. One that needs more is made again
/// on a thread of its own.
const INLINE_STEPS_MAX: u64 = 50_000;
/// Threads that plan at a time, at the least: one long text does not hold up all others.
const PLANNERS_MIN: usize = 2;
/// Texts that wait for a thread; more are refused with 53000.
const WAITING_MAX: usize = 1024;

/// Plans texts of any size.
pub struct Planners {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
    timeout: Duration,
    bytes_max: usize,
}

/// What a plan is made from.
pub struct Task<'a> {
    /// The snapshot.
    pub catalog: &'a Arc<Catalog>,
    /// The text.
    pub text: &'a str,
    /// Its normalised form, where that is known.
    pub normalised: Option<&'a Normalised>,
    /// Declared types of parameters.
    pub parameter_types: &'a [u32],
    /// The effective search path.
    pub search_path: &'a Arc<Vec<String>>,
    /// Who asks.
    pub user: &'a Arc<User>,
    /// The session's temporary objects.
    pub temporary: &'a Arc<Temporary>,
    /// What is known about keys.
    pub reach: automator67_planner::Reach,
    /// No tier below this one.
    pub tier: automator67_planner::Tier,
    /// Whether system catalogs show the proxy's own schemas.
    pub own_schemas: automator67_planner::OwnSchemas,
}

impl Task<'_> {
    fn plan(&self, budget: &Budget) -> Result<Vec<Planned>, PlanError> {
        let context = Context {
            search_path: self.search_path,
            user: &self.user.name,
            reach: self.reach,
            tier: self.tier,
            moved: &[],
            parameter_types: self.parameter_types,
            temporary: self.temporary,
            own_schemas: self.own_schemas,
            budget,
        };
        automator67_planner::plan(self.catalog, &context, self.text, self.normalised)
    }
}

/// A plan, or why there is none.
type Made = Result<Vec<Planned>, (PlanError, Option<Excess>)>;

/// A plan under way on another thread. It is called off when this is dropped.
pub struct Making {
    made: oneshot::Receiver<Made>,
    called_off: Arc<AtomicBool>,
}

impl Drop for Making {
    fn drop(&mut self) {
        self.called_off.store(true, Ordering::Relaxed);
    }
}

impl Planners {
    /// As the settings say.
    pub fn new(settings: &Settings) -> Planners {
        Planners {
            places: Arc::new(Semaphore::new(settings.threads.max(PLANNERS_MIN))),
            waiting: AtomicUsize::new(0),
            timeout: settings.plan_timeout,
            bytes_max: settings.plan_memory_max,
        }
    }

    /// How long a plan may take, counted from when it was asked for.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Plans a short text at once. `None`: it is none, and needs a thread of its own.
    pub fn at_once(&self, task: &Task<'_>) -> Option<Outcome<Vec<Planned>>> {
        if task.text.len() > INLINE_TEXT_BYTES_MAX {
            return None;
        }
        let budget = Budget::new(INLINE_STEPS_MAX, self.bytes_max, Arc::default());
        let made = task.plan(&budget);
        match budget.excess() {
            Some(Excess::Steps) => None,
            excess => Some(made.map_err(|error| self.failure(error, excess))),
        }
    }

    /// Plans any text. Dropping the future calls the plan off, wherever it is.
    pub async fn apart(&self, task: Task<'_>) -> Outcome<Vec<Planned>> {
        let place = self.place().await?;
        let mut making = start(&task, self.bytes_max, place)?;
        match (&mut making.made).await {
            Ok(made) => made.map_err(|(error, excess)| self.failure(error, excess)),
            Err(_) => Err(Report::error(
                sqlstate::INTERNAL_ERROR,
                "planning the statement has failed",
            )
            .into()),
        }
    }

    async fn place(&self) -> Outcome<tokio::sync::OwnedSemaphorePermit> {
        let _waiting = Waiting::new(&self.waiting).ok_or_else(|| {
            Report::error(
                sqlstate::INSUFFICIENT_RESOURCES,
                "too many long statements wait to be planned",
            )
            .detail(format!("At most {WAITING_MAX} of them may wait."))
            .hint("Try again later, or send shorter statements.")
        })?;
        let place = self.places.clone().acquire_owned().await;
        Ok(place.expect("the semaphore is never closed"))
    }

    /// What the client is told; a limit that was passed is named.
    fn failure(&self, error: PlanError, excess: Option<Excess>) -> Failure {
        match excess {
            None | Some(Excess::Steps | Excess::CalledOff) => error.into(),
            Some(Excess::Memory) => Report::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, error.message)
                .detail(format!(
                    "Planning it would take more than plan_memory_max, {} bytes.",
                    self.bytes_max
                ))
                .hint("Send fewer values, rows or statements at once, use COPY or an array parameter, or raise plan_memory_max.")
                .into(),
        }
    }

    /// What the client is told when [`Planners::timeout`] is over.
    pub fn too_long(&self) -> Failure {
        Report::error(
            sqlstate::PROGRAM_LIMIT_EXCEEDED,
            "statement is too complex to plan",
        )
        .detail(format!(
            "Planning it would take more than plan_timeout_ms, {} ms.",
            self.timeout.as_millis()
        ))
        .hint("Simplify the statement, send fewer values, rows or statements at once, or raise plan_timeout_ms.")
        .into()
    }
}

/// One of the texts that wait for a thread.
struct Waiting<'p>(&'p AtomicUsize);

impl<'p> Waiting<'p> {
    fn new(count: &'p AtomicUsize) -> Option<Waiting<'p>> {
        let waiting = Waiting(count);
        (count.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Starts a thread for one plan. It has its place as long as it lives: what cannot be called off,
/// like the grammar's own work, counts until it has ended.
fn start(
    task: &Task<'_>,
    bytes_max: usize,
    place: tokio::sync::OwnedSemaphorePermit,
) -> Outcome<Making> {
    let (tell, made) = oneshot::channel();
    let making = Making {
        made,
        called_off: Arc::default(),
    };
    let called_off = making.called_off.clone();
    let (catalog, search_path, user) = (
        task.catalog.clone(),
        task.search_path.clone(),
        task.user.clone(),
    );
    let text = task.text.to_owned();
    let normalised = task.normalised.cloned();
    let parameter_types = task.parameter_types.to_vec();
    let temporary = task.temporary.clone();
    let (reach, tier, own_schemas) = (task.reach, task.tier, task.own_schemas);
    let work = move || {
        let task = Task {
            catalog: &catalog,
            text: &text,
            normalised: normalised.as_ref(),
            parameter_types: &parameter_types,
            search_path: &search_path,
            user: &user,
            temporary: &temporary,
            reach,
            tier,
            own_schemas,
        };
        let budget = Budget::new(u64::MAX, bytes_max, called_off);
        let made = task.plan(&budget);
        // Nobody may be there any more.
        let _ = tell.send(made.map_err(|error| (error, budget.excess())));
        drop(place);
    };
    std::thread::Builder::new()
        .name("plan".to_owned())
        .stack_size(PLANNING_STACK_BYTES)
        .spawn(work)
        .map_err(|error| {
            Report::error(
                sqlstate::INSUFFICIENT_RESOURCES,
                format!("could not start a thread to plan the statement: {error}"),
            )
            .hint("Raise the limits on threads and on address space of the process.")
        })?;
    Ok(making)
}
