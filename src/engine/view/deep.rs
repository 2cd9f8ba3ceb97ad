//! How deep a query is. Parsers and planners go down it by recursion, and so does
//! what drops it, and a stack that is too small for that ends the whole process.
//!
//! Parsers bound what is nested in brackets. What is not nested to the eye they read
//! in a loop: `a OR b OR c` is as deep as it has terms. Those are counted before
//! anything is parsed, and rather too many than too few: the arms of a `CASE`, say,
//! are told from no other words.

use datafusion_sql::sqlparser::dialect::GenericDialect;
use datafusion_sql::sqlparser::keywords::Keyword;
use datafusion_sql::sqlparser::tokenizer::{Token, Tokenizer};

/// Stack of every thread that queries are planned in, in bytes. It is only reserved,
/// and used as far as a query is deep: some 20 KiB a step in a debug build.
pub const STACK: usize = 64 << 20;

/// Most steps from the top of a query to its bottom.
const DEEPEST: usize = 500;

/// What is open: its operators since the last comma, and what commas do not end.
#[derive(Clone, Copy, Default)]
struct Level {
    chain: usize,
    joined: usize,
}

/// Whether `sql` can be planned on [`STACK`]. The error is the end of a sentence.
pub fn check(sql: &str) -> Result<(), String> {
    let Some(deep) = deepest(sql) else {
        // Other dialects may read it; no operator is shorter than a byte.
        return match sql.len() <= DEEPEST {
            true => Ok(()),
            false => Err("its query has a quote or a comment that does not end".to_string()),
        };
    };
    if deep <= DEEPEST {
        return Ok(());
    }
    Err(format!(
        "its query is {deep} operators deep, and may be {DEEPEST}; write 'x IN (…)' for many \
         comparisons of one column, or recreate the view over a simpler query"
    ))
}

/// The most operators, joins and set operations that can be one within the other;
/// `None` if it cannot be told apart into tokens.
fn deepest(sql: &str) -> Option<usize> {
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().ok()?;
    let mut open = vec![Level::default()];
    let (mut now, mut most) = (0, 0);
    for token in tokens {
        let is_nested = open.len() > 1;
        let Some(level) = open.last_mut() else {
            break;
        };
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                now += 1;
                open.push(Level {
                    chain: 0,
                    joined: 1,
                });
            }
            Token::RParen | Token::RBracket | Token::RBrace if is_nested => {
                let closed = open.pop().unwrap_or_default();
                now -= closed.chain + closed.joined;
            }
            Token::Comma => {
                now -= level.chain;
                level.chain = 0;
            }
            Token::Word(word) => match word.keyword {
                Keyword::JOIN
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::MINUS => {
                    level.joined += 1;
                    now += 1;
                }
                Keyword::AND
                | Keyword::OR
                | Keyword::XOR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::IN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::RLIKE
                | Keyword::REGEXP
                | Keyword::SIMILAR
                | Keyword::OVERLAPS
                | Keyword::MEMBER
                | Keyword::MATCH
                | Keyword::OPERATOR
                | Keyword::NOTNULL
                | Keyword::BETWEEN
                | Keyword::AT
                | Keyword::COLLATE
                | Keyword::DIV => {
                    level.chain += 1;
                    now += 1;
                }
                _ => {}
            },
            Token::Whitespace(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::DoubleQuotedString(_)
            | Token::Period
            | Token::SemiColon
            | Token::EOF => {}
            // Every other one may be an operator.
            _ => {
                level.chain += 1;
                now += 1;
            }
        }
        most = most.max(now);
    }
    Some(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deepest(sql: &str) -> usize {
        super::deepest(sql).unwrap()
    }

    fn chain(term: &str, by: &str, terms: usize) -> String {
        vec![term; terms].join(by)
    }

    #[test]
    fn what_is_not_nested_to_the_eye_is_counted() {
        assert_eq!(deepest("SELECT a, b FROM t"), 0);
        assert_eq!(deepest("SELECT a + 1, b * 2 - c, d FROM t"), 2);
        assert_eq!(deepest("SELECT (a + (b)) FROM t WHERE x = 1"), 3);
        let or = chain("x = 1", " OR ", 300);
        assert_eq!(deepest(&format!("SELECT a FROM t WHERE {or}")), 599);
        assert_eq!(deepest(&chain("SELECT a, b FROM t", " UNION ALL ", 9)), 8);
        let many = chain("x", ", ", 5000);
        assert_eq!(
            deepest(&format!("SELECT {many} FROM t WHERE x IN ({many})")),
            2
        );
        assert_eq!(deepest(&chain("CAST(a + b AS INT)", ", ", 100)), 2);
        for by in [
            " MINUS ",
            " RLIKE ",
            " OVERLAPS ",
            " MEMBER OF (a) AND ",
            " # ",
            "::",
        ] {
            assert!(deepest(&chain("a", by, 600)) >= 599, "{by}");
        }
        // Words that are columns here are none that end a chain.
        assert!(deepest(&chain("when = 1", " OR ", 600)) >= 599);
        assert!(deepest(&chain("t.case + a + t.end", " + ", 600)) >= 599);
    }

    #[test]
    fn brackets_that_fit_nothing_and_broken_texts_are_let_through() {
        for sql in [")))", "((", "SELECT 'open", "", "]+]"] {
            check(sql).unwrap();
        }
        let hidden = format!("id = 0 /* /* */ {}", chain("OR id = 1", " ", 600));
        let why = check(&hidden).unwrap_err();
        assert!(why.contains("does not end"), "{why}");
    }

    #[test]
    fn what_is_too_deep_is_told_how_deep_it_is() {
        let sql = format!("SELECT {} FROM t", chain("a", " + ", 502));
        let why = check(&sql).unwrap_err();
        assert!(why.contains("501 operators deep"), "{why}");
        check(&format!("SELECT {} FROM t", chain("a", " + ", 501))).unwrap();
    }
}
