//! Traces, from the REST call through the controller's steps to the worker.
//!
//! Spans are few and of four kinds, so they are made by hand: `POST …/refresh`
//! (whose parent is the caller's `traceparent`, where there is one), each step
//! of the controller, the launch, and the work itself. The context goes from
//! REST to the controller in an annotation of the refresh, and on to the
//! worker in its environment, both in the form of W3C Trace Context.
//!
//! Off, unless OpenTelemetry's own variables name an endpoint; see
//! [`super::otlp`].

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::SystemTime;

use rand::Rng;
use sha2::{Digest, Sha256};

use super::otlp::Exporter;

/// Header, and by the same name in capitals the worker's variable, of a context.
pub const TRACEPARENT: &str = "traceparent";

/// Environment variable of a worker pod with the context it works in.
pub const TRACEPARENT_ENV: &str = "TRACEPARENT";

/// A span's place in a trace, as W3C Trace Context writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    trace: [u8; 16],
    span: [u8; 8],
    sampled: bool,
}

impl Context {
    /// A trace of its own.
    fn root() -> Self {
        let mut dice = rand::rng();
        Self {
            // Zero is no id, and comes up as good as never.
            trace: dice.random(),
            span: dice.random(),
            sampled: true,
        }
    }

    fn child(self) -> Self {
        Self {
            span: rand::rng().random(),
            ..self
        }
    }

    /// The span of what is known by `name` in this trace, the same whoever asks.
    fn known_as(self, name: &str) -> Self {
        let digest = Sha256::digest([&self.trace[..], name.as_bytes()].concat());
        let mut span = [0; 8];
        span.copy_from_slice(&digest[..8]);
        Self { span, ..self }
    }

    /// The trace's id in hex.
    pub fn trace_id(&self) -> String {
        hex::encode(self.trace)
    }

    /// The span's id in hex.
    pub fn span_id(&self) -> String {
        hex::encode(self.span)
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{}-{}-{flags:02x}", self.trace_id(), self.span_id())
    }
}

impl FromStr for Context {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (
            parts.next().ok_or(())?,
            parts.next().ok_or(())?,
            parts.next().ok_or(())?,
            parts.next().ok_or(())?,
        );
        // Later versions may say more after the flags; version ff is none.
        if version.len() != 2 || version == "ff" || (version == "00" && parts.next().is_some()) {
            return Err(());
        }
        let mut this = Self {
            trace: [0; 16],
            span: [0; 8],
            sampled: false,
        };
        let mut flag = [0; 1];
        let read = |text: &str, bytes: &mut [u8]| match text.bytes().any(|b| b.is_ascii_uppercase())
        {
            true => Err(()),
            false => hex::decode_to_slice(text, bytes).map_err(|_| ()),
        };
        read(version, &mut [0; 1])?;
        read(trace, &mut this.trace)?;
        read(span, &mut this.span)?;
        read(flags, &mut flag)?;
        this.sampled = flag[0] & 1 == 1;
        match this.trace == [0; 16] || this.span == [0; 8] {
            true => Err(()),
            false => Ok(this),
        }
    }
}

/// The trace that a refresh belongs to: that of the request which made it, or
/// one of its own.
#[derive(Clone, Debug)]
pub struct Origin {
    context: Context,
    parent: Option<Context>,
    uid: String,
}

impl Origin {
    /// The origin of the refresh with this UID, and the context that its
    /// annotation tells, if it has one.
    pub fn of(uid: &str, annotation: Option<&str>) -> Self {
        let parent = annotation.and_then(|text| text.parse().ok());
        let own = || {
            let digest = Sha256::digest(uid);
            let mut this = Context {
                trace: [0; 16],
                span: [0; 8],
                sampled: true,
            };
            this.trace.copy_from_slice(&digest[..16]);
            this.span.copy_from_slice(&digest[16..24]);
            this
        };
        Self {
            context: parent.unwrap_or_else(own),
            parent,
            uid: uid.to_string(),
        }
    }

    /// A step of the controller that began at `began`.
    pub fn step(&self, name: &str, began: SystemTime) -> Option<Span> {
        let span = begin_as(name, Kind::Internal, self.context.child(), self.parent)?;
        Some(span.began_at(began))
    }

    /// The launch, which began at `began`.
    pub fn launch(&self, began: SystemTime) -> Option<Span> {
        let span = begin_as("launch", Kind::Producer, self.of_launch(), self.parent)?;
        Some(span.began_at(began))
    }

    /// The context in which the workers work: the span of their launch, which
    /// has the same id whenever it is asked for.
    pub fn of_launch(&self) -> Context {
        self.context.known_as(&self.uid)
    }
}

/// What a span is of, for those who draw traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work inside.
    Internal = 1,
    /// A request that is answered.
    Server = 2,
    /// Something that is asked for, to be done elsewhere.
    Producer = 4,
    /// What was asked for elsewhere.
    Consumer = 5,
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) context: Context,
    pub(super) parent: Option<Context>,
    pub(super) began: SystemTime,
    pub(super) ended: SystemTime,
    pub(super) attributes: Vec<(&'static str, String)>,
    pub(super) failed: bool,
}

/// A span that is under way; nothing of it is told before it ends.
#[derive(Debug)]
pub struct Span(Ended);

static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// Starts to export what `exporter` gets, for as long as the process lives.
pub(super) fn export_to(exporter: Exporter) {
    let _ = EXPORTER.set(exporter);
}

/// Whether spans go anywhere.
pub fn is_on() -> bool {
    EXPORTER.get().is_some()
}

/// Sends what has ended and was not sent yet.
pub async fn flush() {
    if let Some(exporter) = EXPORTER.get() {
        exporter.flush().await;
    }
}

/// Begins a span under `parent`, or a trace of its own; None if traces are off,
/// or if the caller's is not sampled.
pub fn begin(name: &str, kind: Kind, parent: Option<Context>) -> Option<Span> {
    let context = parent.map_or_else(Context::root, Context::child);
    begin_as(name, kind, context, parent)
}

/// The same as a span that others know already.
pub fn begin_as(name: &str, kind: Kind, context: Context, parent: Option<Context>) -> Option<Span> {
    if !is_on() || !context.sampled {
        return None;
    }
    let now = SystemTime::now();
    Some(Span(Ended {
        name: name.to_string(),
        kind,
        context,
        parent,
        began: now,
        ended: now,
        attributes: Vec::new(),
        failed: false,
    }))
}

/// What a request passes on to the refresh that it makes: the span it is
/// `traced` as, else, while traces are `on`, the `caller`'s context, of which
/// no spans are made because it is not sampled. Without it, the refresh would
/// begin a trace of its own.
pub fn passed_on(on: bool, traced: Option<Context>, caller: Option<Context>) -> Option<Context> {
    traced.or(caller.filter(|caller| on && !caller.sampled))
}

impl Span {
    /// Where it stands, for what it causes.
    pub fn context(&self) -> Context {
        self.0.context
    }

    /// Says that it began earlier.
    pub fn began_at(mut self, began: SystemTime) -> Self {
        self.0.began = began;
        self
    }

    /// Says something of it. No secrets.
    pub fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.0.attributes.push((key, value.to_string()));
        self
    }

    /// Ends it, well or not.
    pub fn end(mut self, failed: bool) {
        self.0.ended = SystemTime::now();
        self.0.failed = failed;
        if let Some(exporter) = EXPORTER.get() {
            exporter.take(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_reads_as_it_is_written() {
        let context: Context = EXAMPLE.parse().unwrap();
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(context.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let root = Context::root();
        assert_eq!(root.to_string().parse(), Ok(root));
        assert_eq!(root.child().trace, root.trace);
        assert_ne!(root.child().span, root.span);
    }

    #[test]
    fn what_is_no_context_is_none() {
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47-00f067aa0ba902b7-01",
            "00-zzf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(wrong.parse::<Context>(), Err(()), "{wrong}");
        }
        // A later version may say more.
        let later = EXAMPLE.replacen("00", "01", 1) + "-more";
        assert!(later.parse::<Context>().is_ok());
    }

    #[test]
    fn the_launch_of_a_refresh_has_one_span_whoever_names_it() {
        let launch = |uid, annotation| Origin::of(uid, annotation).of_launch();
        assert_eq!(launch("uid", None), launch("uid", None));
        assert_ne!(launch("uid", None), launch("other", None));
        let of_request = launch("uid", Some(EXAMPLE));
        assert_eq!(of_request.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(launch("uid", Some("nonsense")), launch("uid", None));
    }

    #[test]
    fn a_trace_that_its_caller_does_not_sample_is_sampled_nowhere() {
        let quiet = EXAMPLE.replace("-01", "-00");
        let caller: Context = quiet.parse().unwrap();
        let annotation = passed_on(true, None, Some(caller)).unwrap().to_string();
        assert_eq!(annotation, quiet);
        let launch = Origin::of("uid", Some(&annotation)).of_launch();
        assert_eq!(launch.trace_id(), caller.trace_id());
        assert!(!launch.sampled && launch.to_string().ends_with("-00"));
        // Of other requests nothing but their span is passed on.
        let sampled: Context = EXAMPLE.parse().unwrap();
        let span = sampled.child();
        assert_eq!(passed_on(true, Some(span), Some(sampled)), Some(span));
        assert_eq!(passed_on(true, None, Some(sampled)), None);
        assert_eq!(passed_on(false, None, Some(caller)), None);
        assert_eq!(passed_on(true, None, None), None);
    }

    #[test]
    fn nothing_is_made_while_traces_are_off() {
        assert!(begin("x", Kind::Internal, None).is_none());
    }
}
