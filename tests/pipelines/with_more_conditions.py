"""The command line with two more conditions: `below` on a score, and `differsFrom` on a flag. For test_conditions."""

from components.recipe.conditions import COMPARISONS, Comparison, said

COMPARISONS += [
    Comparison(
        "below",
        "score",
        float,
        "Below this number, or below the threshold of another rule of this mixture.",
        lambda scores, number: scores < number,
        lambda name, number: f"score {name} < {said(number)}",
        borrows=True,
    ),
    Comparison(
        "differs_from",
        "flag",
        bool,
        "Any other value than this.",
        lambda flags, value: flags != value,
        lambda name, value: f"{name} differs from {str(value).lower()}",
    ),
]

if __name__ == "__main__":
    from pipelines.cli import main

    main()
