//! What a row adds to a sum: a decimal number as a whole number of its smallest unit.

/// The most digits after the point that a sum can have: those of the largest bigint.
pub const MAX_SCALE: u32 = 18;

/// Why a number cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsuitable {
    /// NaN or an infinity.
    NotFinite,
    /// It has more digits after the point than the sum.
    TooFine,
    /// It does not fit in a bigint.
    OutOfRange,
}

/// `number * 10^scale`.
///
/// # Errors
/// [`Unsuitable::OutOfRange`].
pub fn scaled_integer(number: i64, scale: u32) -> Result<i64, Unsuitable> {
    10_i64
        .checked_pow(scale)
        .and_then(|factor| number.checked_mul(factor))
        .or((number == 0).then_some(0))
        .ok_or(Unsuitable::OutOfRange)
}

/// The same of a number as the server writes a numeric: a sign, digits, a point, digits.
///
/// # Errors
/// [`Unsuitable`].
pub fn scaled(text: &[u8], scale: u32) -> Result<i64, Unsuitable> {
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let mut parts = digits.splitn(2, |&byte| byte == b'.');
    let (whole, fraction) = (parts.next().unwrap_or_default(), parts.next());
    let all_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    let fraction = fraction.unwrap_or_default();
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) {
        return Err(Unsuitable::NotFinite);
    }
    let trimmed = fraction.len() - fraction.iter().rev().take_while(|&&d| d == b'0').count();
    if trimmed > scale as usize {
        return Err(Unsuitable::TooFine);
    }
    let missing = scale as usize - trimmed;
    let zeros = std::iter::repeat_n(&b'0', missing);
    let mut value = 0_i64;
    for digit in whole.iter().chain(&fraction[..trimmed]).chain(zeros) {
        let digit = i64::from(digit - b'0');
        // Downwards: there is one negative number more.
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_sub(digit))
            .ok_or(Unsuitable::OutOfRange)?;
    }
    match negative {
        true => Ok(value),
        false => value.checked_neg().ok_or(Unsuitable::OutOfRange),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_whole_numbers_of_the_smallest_unit() {
        assert_eq!(scaled(b"12.34", 2), Ok(1234));
        assert_eq!(scaled(b"-12.34", 2), Ok(-1234));
        assert_eq!(scaled(b"12.3400", 2), Ok(1234));
        assert_eq!(scaled(b"12", 2), Ok(1200));
        assert_eq!(scaled(b"0", 18), Ok(0));
        assert_eq!(scaled(b"0.000", 0), Ok(0));
        assert_eq!(scaled(b"9223372036854775807", 0), Ok(i64::MAX));
        assert_eq!(scaled(b"-9223372036854775808", 0), Ok(i64::MIN));
        assert_eq!(scaled(b"-92233720368547758.08", 2), Ok(i64::MIN));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(scaled(b"12.345", 2), Err(Unsuitable::TooFine));
        assert_eq!(
            scaled(b"9223372036854775808", 0),
            Err(Unsuitable::OutOfRange)
        );
        assert_eq!(
            scaled(b"92233720368547758.08", 2),
            Err(Unsuitable::OutOfRange)
        );
        for text in ["NaN", "Infinity", "-Infinity", "", "-", ".", "1e5"] {
            assert_eq!(
                scaled(text.as_bytes(), 2),
                Err(Unsuitable::NotFinite),
                "{text}"
            );
        }
        assert_eq!(
            scaled_integer(i64::MAX / 10 + 1, 1),
            Err(Unsuitable::OutOfRange)
        );
        assert_eq!(scaled_integer(1, 19), Err(Unsuitable::OutOfRange));
        assert_eq!(scaled_integer(0, 19), Ok(0));
    }

    proptest! {
        #[test]
        fn integers_are_the_same_both_ways(number: i64, scale in 0u32..=MAX_SCALE) {
            prop_assert_eq!(scaled(number.to_string().as_bytes(), scale), scaled_integer(number, scale));
        }

        #[test]
        fn fractions_come_back(number: i64, scale in 0u32..=MAX_SCALE) {
            let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale as usize + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
            let sign = if number < 0 { "-" } else { "" };
            let text = format!("{sign}{whole}.{fraction}");
            prop_assert_eq!(scaled(text.as_bytes(), scale), Ok(number));
        }
    }
}
