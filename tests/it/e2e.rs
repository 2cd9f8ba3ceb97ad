//! Stock Python clients and a whole operator.

use std::process::Command;

use crate::operator::{Operator, needed};
use crate::support::repo;

#[tokio::test]
async fn stock_python_clients_refresh_a_view_through_the_operator() {
    let operator = Operator::running().await;
    let file = repo("tests/python/operator_clients.py");
    let python = Command::new(needed("RELANCE_TEST_PYTHON"))
        .args(["-m", "pytest", "-q"])
        .arg(file)
        .env("RELANCE_TEST_URL", &operator.url)
        .env("RELANCE_TEST_TABLES", &operator.tables)
        .output()
        .expect("Python runs");
    let said = String::from_utf8_lossy(&python.stdout);
    assert!(python.status.success(), "{said}");
}
