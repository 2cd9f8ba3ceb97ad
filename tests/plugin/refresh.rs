//! Making a refresh and waiting for it.

use std::sync::Mutex;

use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use serde_json::Value;

use crate::api::{Api, forbidden, list, ok, refresh, refused, watched};

/// An API server that stores the refresh, and answers the first creates so.
async fn storing(answers: &'static [(u16, &'static str)]) -> Api {
    let stored: Mutex<(usize, Option<Value>)> = Mutex::default();
    Api::that(move |asked| {
        let mut stored = stored.lock().unwrap();
        if asked.method == Method::GET {
            return match &stored.1 {
                Some(found) => ok(found),
                None => refused(404, "NotFound", "it is not there"),
            };
        }
        let answer = answers.get(stored.0);
        stored.0 += 1;
        match answer {
            // Of a conflict nothing is stored.
            Some((409, reason)) => return refused(409, reason, "somebody came before"),
            _ if stored.1.is_some() => return refused(409, "AlreadyExists", "it is there already"),
            _ => stored.1 = Some(asked.body.clone()),
        }
        match answer {
            Some((code, reason)) => refused(*code, reason, "no answer in time"),
            None => (StatusCode::CREATED, ok(&asked.body)).into_response(),
        }
    })
    .await
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_no_failure() {
    // The client asks again what was put off, and what it made itself is in its way.
    let api = storing(&[(504, "Timeout")]).await;
    let said = api.says(&["refresh", "v"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    let asked = api.asked();
    let found = format!("/{}", said.out.trim_end());
    assert!(asked.last().unwrap().ends_with(&found), "{asked:?}");
    // Nor is another's change that came before.
    let api = storing(&[(409, "Conflict"), (500, "InternalError")]).await;
    let said = api.says(&["refresh", "v"]).await;
    assert_eq!(said.code, 0, "{said:?}");
}

#[tokio::test]
async fn a_name_that_is_another_refreshs_is_told_so() {
    let api = storing(&[]).await;
    assert_eq!(api.says(&["refresh", "v", "--name", "n"]).await.code, 0);
    assert_eq!(api.says(&["refresh", "v", "--name", "n"]).await.code, 0);
    let said = api.says(&["refresh", "w", "--name", "n"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("asks for something else"), "{said:?}");
}

#[tokio::test]
async fn a_refresh_that_cannot_be_waited_for_is_named() {
    let api = Api::that(|asked| match asked.what().as_str() {
        "POST materializedviewrefreshes" => ok(&asked.body),
        _ => forbidden(),
    })
    .await;
    let said = api
        .says(&["refresh", "v", "--name=mine", "--wait", "-ojson"])
        .await;
    assert_eq!((said.code, said.out.as_str()), (6, ""), "{said:?}");
    assert!(
        said.err.contains("refresh 'mine' was asked for"),
        "{said:?}"
    );
}

#[tokio::test]
async fn what_passes_is_not_told_as_a_wrong_command_line() {
    for (code, reason) in [(408, "Timeout"), (410, "Expired"), (429, "TooManyRequests")] {
        let api = Api::that(move |_| refused(code, reason, "later")).await;
        let said = api.says(&["status"]).await;
        assert_eq!(said.code, 7, "{said:?}");
        // One sentence, and not the client's own words besides.
        assert_eq!(said.err.lines().count(), 1, "{said:?}");
    }
}

#[tokio::test]
async fn what_there_is_not_is_told_with_the_command_that_lists_what_there_is() {
    let api = Api::that(|_| refused(404, "NotFound", "it is not there")).await;
    let said = api
        .says(&["wait", "r", "-n", "far", "--context", "the other"])
        .await;
    assert_eq!(said.code, 5, "{said:?}");
    let list = "`relance kubectl status -n far --context 'the other'`";
    assert!(said.err.contains(list), "{said:?}");
}

#[tokio::test]
async fn what_others_wrote_does_not_reach_the_terminal_as_it_is() {
    let message = "\u{1b}]0;title\u{7}one\ntwo";
    let api = Api::that(move |asked| match asked.what().as_str() {
        "WATCH materializedviewrefreshes" => {
            watched("MODIFIED", &[refresh("r", "Failed", message)])
        }
        "GET materializedviewrefreshes" => list(
            "MaterializedViewRefresh",
            &[refresh("r", "Running", message)],
        ),
        _ => ok(&refresh("r", "Running", message)),
    })
    .await;
    for arguments in [&["status"][..], &["status", "r"], &["wait", "r"]] {
        let said = api.says(arguments).await;
        let told = format!("{}{}", said.out, said.err);
        assert!(told.contains("one two"), "{said:?}");
        assert!(!told.contains(['\u{1b}', '\u{7}']), "{said:?}");
    }
}
