"""WSA's Table 2: four algorithms with and without WSA, 10 clients, all in every round.

    python -m benchmarks table2 [--preset smoke|short|cpu|paper]

paper: CIFAR-10, CIFAR-100 and CINIC-10, alpha 0.5 and 1, 1,500 rounds, three seeds. short cuts the
rounds to 100, the data to CIFAR-10 and the seeds to one: 16 cells. cpu: the standard problem.
smoke: FedAvg on digits.
"""

from benchmarks.federated.paper_numbers import TABLE2
from benchmarks.federated.paper_table import PaperTable

TABLE = PaperTable(
    number=2,
    numbers=TABLE2,
    clients="10 clients, all in every round",
    full="full-length-fedavg-with-and-without-wsa",
    short=(25, "table-2-four-algorithms-10-clients"),
)
comparisons, claims = TABLE.comparisons, TABLE.claims
SCRIPT = TABLE.script("table2_cross_silo", __doc__)
