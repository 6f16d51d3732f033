"""WSA's Table 3: four algorithms with and without WSA, 100 clients, 10 drawn a round.

    python -m benchmarks table3 [--preset smoke|short|cpu|paper]

paper: CIFAR-10, CIFAR-100 and CINIC-10, alpha 0.5 and 1, 1,500 rounds, three seeds. short cuts the
rounds to 100, the data to CIFAR-10 and the seeds to one: 16 cells. cpu: the standard problem.
smoke: FedAvg on digits, two of eight clients a round.
"""

from benchmarks.federated.paper_numbers import TABLE3
from benchmarks.federated.paper_table import PaperTable

TABLE = PaperTable(
    number=3,
    numbers=TABLE3,
    clients="100 clients, 10 drawn a round",
    full="table-3-100-clients-10-drawn-a-round",
    short=(20, "table-3-100-clients-10-drawn-a-round"),
    cells={"clients": 100, "participants": 10},
    smoke_cells={"clients": 8, "participants": 2},
)
comparisons, claims = TABLE.comparisons, TABLE.claims
SCRIPT = TABLE.script("table3_cross_device", __doc__)
