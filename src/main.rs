use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use relance::cli::{Cli, Command, LogFormat};
use relance::engine::error::EngineError;
use relance::engine::view::deep::STACK;
use relance::engine::{memory, processors};
use relance::kubectl::args::Plugin;
use relance::protocol::exit;
use relance::rest::auth::keys;
use relance::terminal::{self, complain, plain};
use relance::{check, kubectl, local, reach, resources, serve, telemetry, worker};

/// What Rust's own programs end with that panic.
const PANICKED: u8 = 101;

fn main() -> ExitCode {
    // SAFETY: nothing has started a thread yet.
    unsafe {
        processors::use_all();
        reach::tidy_exceptions();
    }
    memory::give_back();
    // Two providers are compiled in, so rustls must be told which one to use.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return fail("a TLS provider is already installed", exit::INTERNAL);
    }
    // The first thread's stack is the system's to size, and what this one does is not
    // only to wait.
    let work = std::thread::Builder::new().stack_size(STACK).spawn(begin);
    match work.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        // It has said why it panicked.
        Ok(Err(_)) => ExitCode::from(PANICKED),
        Err(error) => fail(
            &format!("a thread cannot be started: {error}"),
            exit::INTERNAL,
        ),
    }
}

fn begin() -> ExitCode {
    match called().as_str() {
        kubectl::PLUGIN => {
            let args = Plugin::parse();
            telemetry::start_logging(LogFormat::Text, telemetry::ERRORS);
            plugin(&args, "kubectl relance")
        }
        kubectl::COMPLETER => complete(),
        _ => relance(Cli::parse()),
    }
}

/// The file name by which this program was called.
fn called() -> String {
    let path = std::env::args_os().next().map(PathBuf::from);
    let name = path.as_deref().and_then(Path::file_stem);
    name.unwrap_or_default().to_string_lossy().into_owned()
}

fn relance(cli: Cli) -> ExitCode {
    let logged = match cli.command {
        Command::Serve(_) | Command::Worker => telemetry::STEPS,
        // Its own sentences tell what goes wrong.
        Command::Kubectl(_) => telemetry::ERRORS,
        _ => telemetry::WARNINGS,
    };
    telemetry::start_logging(cli.log_format, logged);
    match cli.command {
        Command::Crds => match resources::schema::yaml() {
            Ok(definitions) => print(
                &definitions
                    .iter()
                    .map(|(_, yaml)| format!("---\n{yaml}"))
                    .collect::<String>(),
            ),
            Err(error) => fail(&error.to_string(), exit::INTERNAL),
        },
        Command::Completions { shell } => {
            let mut script = Vec::new();
            // The plug-in has a name of its own, which is not what it is called by here.
            let named = |plugin: clap::Command| plugin.bin_name("relance kubectl");
            let mut command = Cli::command().mut_subcommand("kubectl", named);
            clap_complete::generate(shell, &mut command, "relance", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Serve(args) => waiting(async {
            serve::serve(&args, cli.log_format)
                .await
                .map_err(|error| (error.to_string(), error.exit_code()))
        }),
        Command::Refresh(args) => run(async { local::refresh_view(&args).await.map_err(told) }),
        Command::Views(args) => run(async { local::list_views(&args).await.map_err(told) }),
        Command::Key(args) => match keys::make(&args.name(), &args.user, &args.groups) {
            Ok(made) => {
                // Who cannot be told the key has no use for its hash.
                match writeln!(std::io::stderr(), "{}", made.key) {
                    Ok(()) => print(&made.manifest),
                    Err(_) => exit_code(exit::INTERNAL),
                }
            }
            Err(sentence) => fail(&sentence, exit::USAGE),
        },
        Command::Check { url, insecure } => run(async {
            check::check(&url, insecure)
                .await
                .map_err(|error| (error.to_string(), exit::UNAVAILABLE))
        }),
        Command::Kubectl(args) => plugin(&args, "relance kubectl"),
        Command::Worker => run(async {
            match worker::run().await {
                exit::OK => Ok(()),
                // The worker has said why.
                code => Err((String::new(), code)),
            }
        }),
    }
}

/// kubectl's plug-in.
fn plugin(args: &Plugin, said: &str) -> ExitCode {
    let (sentence, code) = match blocking(kubectl::run(args, said)) {
        Ok(Ok(code)) => (String::new(), code),
        Ok(Err(error)) => (error.to_string(), error.code()),
        Err(code) => return code,
    };
    if !sentence.is_empty() {
        complain(&format!("error: {}", plain(&sentence)));
    }
    exit_code(code)
}

/// What kubectl asks to complete a command line.
fn complete() -> ExitCode {
    let words = std::env::args_os().skip(1);
    let words: Vec<String> = words.map(|w| w.to_string_lossy().into_owned()).collect();
    match blocking(kubectl::complete::answer(&words)) {
        Ok(answer) => print(&answer),
        Err(code) => code,
    }
}

fn told(error: EngineError) -> (String, i32) {
    (error.to_string(), worker::exit_code(&error))
}

fn run(work: impl Future<Output = Result<(), (String, i32)>>) -> ExitCode {
    ended(blocking(work))
}

fn ended(ended: Result<Result<(), (String, i32)>, ExitCode>) -> ExitCode {
    match ended {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err((sentence, code))) => fail(&sentence, code),
        Err(code) => code,
    }
}

fn blocking<T>(work: impl Future<Output = T>) -> Result<T, ExitCode> {
    by(tokio::runtime::Builder::new_multi_thread(), work)
}

/// What mostly waits for others does it in this one thread: between several,
/// waking one another would take longer than what they then do.
fn waiting(work: impl Future<Output = Result<(), (String, i32)>>) -> ExitCode {
    ended(by(tokio::runtime::Builder::new_current_thread(), work))
}

fn by<T>(
    mut runtime: tokio::runtime::Builder,
    work: impl Future<Output = T>,
) -> Result<T, ExitCode> {
    match runtime.enable_all().thread_stack_size(STACK).build() {
        Ok(runtime) => Ok(runtime.block_on(work)),
        Err(error) => Err(fail(
            &format!("threads cannot be started: {error}"),
            exit::INTERNAL,
        )),
    }
}

/// Writes to standard output; a reader that has gone away (`| head`) is no error.
fn print(text: &str) -> ExitCode {
    match terminal::print(text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(
            &format!("standard output cannot be written: {error}"),
            exit::INTERNAL,
        ),
        _ => ExitCode::SUCCESS,
    }
}

fn fail(sentence: &str, code: i32) -> ExitCode {
    if !sentence.is_empty() {
        complain(&format!("relance: {sentence}"));
    }
    exit_code(code)
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
