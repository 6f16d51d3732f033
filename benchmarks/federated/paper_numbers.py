"""What the papers report, each with its source: test accuracies in percent."""

PAPER_ROUNDS = 1500
"""Of every federated table and figure."""

# WSA (Xu, Li, Gan, Zhan: "Weight Scope Alignment: A Frustratingly Easy Method for Model Merging"),
# Table 2 (section 5.3): 10 clients, all in every round, CNN, 1,500 rounds.
# (data set, alpha) -> algorithm -> (baseline, +WSA).
TABLE2: dict[tuple[str, float], dict[str, tuple[float, float]]] = {
    ("cifar10", 0.5): {
        "fed_avg": (68.42, 72.39),
        "fed_prox": (68.40, 72.49),
        "scaffold": (66.69, 71.61),
        "fed_exp": (73.24, 75.55),
    },
    ("cifar10", 1.0): {
        "fed_avg": (69.06, 73.09),
        "fed_prox": (69.11, 73.18),
        "scaffold": (68.14, 72.65),
        "fed_exp": (72.73, 76.10),
    },
    ("cifar100", 0.5): {
        "fed_avg": (30.66, 35.23),
        "fed_prox": (30.47, 35.39),
        "scaffold": (29.58, 34.38),
        "fed_exp": (38.93, 41.71),
    },
    ("cifar100", 1.0): {
        "fed_avg": (30.86, 36.16),
        "fed_prox": (31.20, 36.24),
        "scaffold": (31.12, 36.76),
        "fed_exp": (40.48, 43.16),
    },
    ("cinic10", 0.5): {
        "fed_avg": (53.05, 57.88),
        "fed_prox": (52.57, 57.54),
        "scaffold": (50.88, 55.87),
        "fed_exp": (56.62, 60.77),
    },
    ("cinic10", 1.0): {
        "fed_avg": (53.94, 58.53),
        "fed_prox": (53.34, 58.26),
        "scaffold": (52.13, 57.52),
        "fed_exp": (56.30, 59.93),
    },
}

# WSA, Table 3 (section 5.3): 100 clients, 10 drawn a round.
TABLE3: dict[tuple[str, float], dict[str, tuple[float, float]]] = {
    ("cifar10", 0.5): {
        "fed_avg": (66.77, 71.11),
        "fed_prox": (66.82, 71.14),
        "scaffold": (65.74, 70.36),
        "fed_exp": (71.79, 74.33),
    },
    ("cifar10", 1.0): {
        "fed_avg": (69.06, 72.80),
        "fed_prox": (69.06, 72.73),
        "scaffold": (69.47, 73.25),
        "fed_exp": (71.82, 74.80),
    },
    ("cifar100", 0.5): {
        "fed_avg": (29.57, 34.47),
        "fed_prox": (29.72, 34.41),
        "scaffold": (29.37, 34.85),
        "fed_exp": (37.98, 41.34),
    },
    ("cifar100", 1.0): {
        "fed_avg": (30.45, 35.31),
        "fed_prox": (30.35, 35.17),
        "scaffold": (31.81, 37.31),
        "fed_exp": (38.46, 41.58),
    },
    ("cinic10", 0.5): {
        "fed_avg": (50.85, 56.68),
        "fed_prox": (50.14, 56.31),
        "scaffold": (48.39, 54.49),
        "fed_exp": (50.22, 56.99),
    },
    ("cinic10", 1.0): {
        "fed_avg": (52.64, 57.82),
        "fed_prox": (52.13, 57.55),
        "scaffold": (52.84, 57.07),
        "fed_exp": (55.84, 60.55),
    },
}

# What the paper says of figures whose curves come without numbers (section 5.3).
CLAIMS = {
    "figure 9": "WSA raises the accuracy of VGG8 on CIFAR-10 (curves without numbers).",
    "figure 10": "The longer the window from round 0, and the earlier a late one begins, the "
    "greater the gain; rounds [0, 125) alone still gain markedly (curves without numbers).",
    "figure 11": "Clients' stds of conv2 spread apart and meet again at each average, most in "
    "early rounds; with WSA they stay together (curves without numbers).",
    "figure 12": "The fused target beats every fixed one; N(0, 0.1²) is second, the others lose "
    "accuracy (curves without numbers).",
}
"""Keys are the paper's figures."""
