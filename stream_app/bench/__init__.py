"""What ``tailrace bench`` runs, over a made-up shop of any size (:mod:`stream_app.bench.shop`).

In process, with the functions that run live: ``ranking``, ``index``, and the plain loop of ``floor``. On a broker, with
processes of Tailrace (``rig``) and a load generator (``load``): ``live``, ``start``, and the bare loop (``bare``).
"""
