"""The reconciliation of a RecaptionSchedule: when its time comes, what to do (decide), and the calls that do it."""
