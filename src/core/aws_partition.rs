//! The partition of AWS that a region belongs to: part of every ARN, and in no configuration.
//!
//! SPEC: AWS General Reference, "Amazon Resource Names".

/// `aws`, `aws-cn`, … for a region.
#[must_use]
pub fn partition_of(region: &str) -> &'static str {
    const OTHERS: [(&str, &str); 6] = [
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-isob-", "aws-iso-b"),
        ("us-isof-", "aws-iso-f"),
        ("us-iso-", "aws-iso"),
        ("eusc-", "aws-eusc"),
    ];
    OTHERS.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, partition)| partition)
}
