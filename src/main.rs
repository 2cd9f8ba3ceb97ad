use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use relance::cli::{Cli, Command};
use relance::engine::error::EngineError;
use relance::protocol::exit;
use relance::{check, local, resources, serve, telemetry, worker};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Two providers are compiled in, so rustls must be told which one to use.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return fail("a TLS provider is already installed", exit::INTERNAL);
    }
    let logged = match cli.command {
        Command::Serve(_) | Command::Worker => telemetry::STEPS,
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
            clap_complete::generate(shell, &mut Cli::command(), "relance", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Serve(args) => run(async {
            serve::serve(&args, cli.log_format)
                .await
                .map_err(|error| (error.to_string(), exit::UNAVAILABLE))
        }),
        Command::Refresh(args) => run(async { local::refresh_view(&args).await.map_err(told) }),
        Command::Views(args) => run(async { local::list_views(&args).await.map_err(told) }),
        Command::Check { url } => run(async {
            check::check(&url)
                .await
                .map_err(|error| (error.to_string(), exit::UNAVAILABLE))
        }),
        Command::Worker => run(async {
            match worker::run().await {
                exit::OK => Ok(()),
                // The worker has said why.
                code => Err((String::new(), code)),
            }
        }),
    }
}

fn told(error: EngineError) -> (String, i32) {
    (error.to_string(), worker::exit_code(&error))
}

fn run(work: impl Future<Output = Result<(), (String, i32)>>) -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            return fail(
                &format!("threads cannot be started: {error}"),
                exit::INTERNAL,
            );
        }
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err((sentence, code)) => fail(&sentence, code),
    }
}

/// Writes to standard output; a reader that has gone away (`| head`) is no error.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => fail(
            &format!("standard output cannot be written: {error}"),
            exit::INTERNAL,
        ),
        _ => ExitCode::SUCCESS,
    }
}

fn fail(sentence: &str, code: i32) -> ExitCode {
    if !sentence.is_empty() {
        eprintln!("relance: {sentence}");
    }
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
