"""The harness: a server with its data, contenders in processes of their own, rounds in alternating order, figures."""
