//! Where the log goes and in which form: lines with time and level on stderr, or lines with the journal's priority if
//! stderr is the journal, which adds the time itself.

use super::LogLines;
use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// From this `-v` on, the libraries' debug messages are logged beside ours. HTTP/2 alone has several a second.
const LIBRARIES: u8 = 10;

/// The handle by which [`set_verbosity`] reaches the filter.
static LEVELS: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Begins to log to stderr, with the verbosity of `-v`. A second call has no effect.
pub fn start(v: u8) {
    let (levels, handle) = reload::Layer::new(levels(v));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(|| LogLines(std::io::stderr()))
        .with_ansi(false)
        // A line that cannot be written is lost. The library would complain on stderr too, and panic there.
        .log_internal_errors(false);
    let began = if is_journal() {
        tracing_subscriber::registry().with(levels).with(lines.event_format(Journal::default())).try_init()
    } else {
        tracing_subscriber::registry().with(levels).with(lines).try_init()
    };
    if began.is_ok() {
        let _ = LEVELS.set(handle);
    }
}

/// Changes the verbosity of a log that [`start`] began.
pub fn set_verbosity(v: u8) {
    if let Some(handle) = LEVELS.get() {
        // This fails only if the subscriber is gone, and then nobody reads the log.
        let _ = handle.reload(levels(v));
    }
}

fn levels(v: u8) -> Targets {
    let debug_from = |least| if v >= least { LevelFilter::DEBUG } else { LevelFilter::INFO };
    Targets::new().with_default(debug_from(LIBRARIES)).with_target("flanneld", debug_from(1))
}

/// Writes a text that is not part of the log, such as a refusal of the command line. In the journal it is an error.
pub fn say_error(text: &str) {
    let prefix = if is_journal() { priority(Level::ERROR) } else { "" };
    let lines: String = text.lines().map(|line| format!("{prefix}{line}\n")).collect();
    // If stderr is closed, the exit code alone tells what happened.
    let _ = std::io::stderr().write_all(lines.as_bytes());
}

/// Whether stderr is a stream of systemd's journal, as `JOURNAL_STREAM` of systemd.exec(5) tells: a program that a
/// service has started with another stderr inherits the variable all the same.
#[must_use]
pub fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned().map(File::from);
    stderr.and_then(|file| file.metadata()).is_ok_and(|data| is_stream(&stream, &data))
}

fn is_stream(stream: &str, data: &fs::Metadata) -> bool {
    stream == format!("{}:{}", data.dev(), data.ino())
}

/// The prefix by which sd-daemon(3) tells the journal how urgent a line is.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// The form of a line for the journal, which knows the time and shows the level as a priority.
struct Journal(Format<Full, ()>);

impl Default for Journal {
    fn default() -> Self {
        Self(Format::default().without_time().with_level(false))
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_the_journal_has_a_priority_and_no_time_of_its_own() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let handle = file.as_file().try_clone().unwrap();
        let writer = move || LogLines(handle.try_clone().unwrap());
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).with_max_level(Level::TRACE);
        tracing::subscriber::with_default(log.event_format(Journal::default()).finish(), || {
            tracing::error!("one\n<0>two");
            tracing::warn!(peers = 3, "two");
            tracing::info!("three");
            tracing::debug!("four");
        });
        let target = "flanneld::log::output::tests";
        let lines = format!(
            "<3>{target}: one\\n<0>two\n<4>{target}: two peers=3\n<6>{target}: three\n<7>{target}: four\n"
        );
        assert_eq!(fs::read_to_string(file.path()).unwrap(), lines);
    }

    #[test]
    fn only_the_stream_that_systemd_names_is_the_journal() {
        let (one, two) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (one, two) = (one.metadata().unwrap(), two.metadata().unwrap());
        let stream = format!("{}:{}", one.dev(), one.ino());
        assert!(is_stream(&stream, &one) && !is_stream(&stream, &two) && !is_stream("", &one));
    }
}
