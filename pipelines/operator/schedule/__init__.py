"""The RecaptionSchedule: when its time comes, what to do about it, and the doing."""
