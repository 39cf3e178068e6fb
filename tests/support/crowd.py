"""Tables as they are after many jobs, filled by PostgreSQL itself."""

from __future__ import annotations

from datetime import datetime

from support.servers import Postgres

EACH = """
    CREATE TEMP TABLE made AS SELECT
        i, 'job_' || lpad(to_hex(i), 32, '0') AS id,
        CASE WHEN i % 10 = 0 THEN 'other' ELSE 'default' END AS tenant,
        CASE WHEN i % 1000 = 7 THEN 'rare.work' ELSE 'fake.work' END AS task,
        CASE WHEN i % 1000 = 7 THEN 'rare' ELSE 'fake' END AS queue,
        CASE
            WHEN i % 20 = 0 THEN 'failed' WHEN i % 20 = 1 THEN 'canceled'
            WHEN i <= 0.9 * {jobs} THEN 'succeeded' WHEN i % 20 < 6 THEN 'queued'
            WHEN i % 20 < 8 THEN 'waiting' WHEN i % 20 = 8 THEN 'scheduled'
            WHEN i % 20 = 9 THEN 'running' ELSE 'succeeded'
        END AS status,
        now() - (({jobs} - i) || ' seconds')::interval AS at
    FROM generate_series(1, {jobs}) AS i
"""

JOBS = """
    INSERT INTO agentflow_jobs (
        id, tenant, task, queue, status, reason, phase, attempt, max_attempts, policy, abilities,
        input, entity, priority, tags, metadata, idempotency_key, request_hash, created_at,
        deadline, started_at, finished_at, check_at, checks, wake_at, version)
    SELECT id, tenant, task, queue, status, 'because',
        CASE status WHEN 'waiting' THEN 'provider' END, 1, 3, '{{}}', '{{}}',
        '{{"prompt": "a fox"}}', 'shot:' || i / 10, i % 3, '["all"]', '{{}}', 'key-' || i,
        md5(i::text), at, now() + interval '1 day', at,
        CASE WHEN ended THEN at END, CASE WHEN NOT ended THEN alarm END, 0,
        CASE WHEN NOT ended THEN alarm END, 2
    FROM (SELECT *, status IN ('succeeded', 'failed', 'canceled') AS ended,
        now() + ((i % 7200 - 60) || ' seconds')::interval AS alarm FROM made) AS each
"""

THEIRS = (
    """
    INSERT INTO agentflow_attempts (
        job_id, number, tenant, provider, token, nonce, worker, external_id, started_at)
    SELECT id, 1, tenant, queue, 'token-' || i, 'nonce', 'worker', 'ext-' || i, at FROM made
    """,
    """
    INSERT INTO agentflow_history (
        job_id, seq, tenant, envelope_id, source, event, fields, disposition, reason, status, patch,
        timers, told_at, decided_at, random, machine, xact)
    SELECT id, seq, tenant, 'e' || seq, 'worker', 'progressed', '{{}}', 'applied', 'because',
        status, '{{}}', '{{}}', at, at, 'cmFuZG9t', 2, i
    FROM made, generate_series(0, 2) AS seq
    """,
    """
    INSERT INTO agentflow_tags (tenant, tag, job_id)
    SELECT tenant, tag, id FROM made, LATERAL (VALUES ('all'), ('batch-' || i / 100)) AS t (tag)
    """,
    """
    INSERT INTO agentflow_inbox (
        id, tenant, kind, provider, dedup_key, token, headers, body, status, reason, job_id,
        received_at, applied_at, wake_at)
    SELECT 'dlv_' || lpad(to_hex(i), 32, '0'), tenant,
        CASE WHEN i % 20 = 3 THEN 'command' ELSE 'webhook' END, queue, 'id:' || i, 'token-' || i,
        '{{}}', '\\x7b7d',
        CASE
            WHEN i > {jobs} - 300 THEN 'received' WHEN i % 50 = 4 THEN 'parked' ELSE 'applied'
        END, NULL, id, at, at, CASE WHEN i % 50 = 4 THEN at + interval '2 days' END
    FROM made
    """,
    """
    INSERT INTO agentflow_parked (inbox_id, provider, external_id)
    SELECT 'dlv_' || lpad(to_hex(i), 32, '0'), queue, 'stray-' || i || '-' || n
    FROM made, generate_series(1, 10) AS n WHERE i % 50 = 4
    """,
    """
    INSERT INTO agentflow_handler_runs (
        id, tenant, handler, kind, job_id, event, status, tries, created_at, wake_at)
    SELECT 'run_' || lpad(to_hex(i), 32, '0'), tenant, 'shop.save', 'succeeded', id, '{{}}',
        CASE
            WHEN i > {jobs} - 300 THEN 'pending' WHEN i % 500 = 40 THEN 'parked' ELSE 'done'
        END, 1, at, CASE WHEN i > {jobs} - 300 THEN at END
    FROM made WHERE i % 4 = 0
    """,
    """
    INSERT INTO agentflow_usage (
        job_id, attempt, tenant, task, model, outcome, usage, amount, currency, source, ended_at)
    SELECT id, 1, tenant, task, 'm', status, '{{"seconds": 2.5}}', 25000000000, 'USD', 'told', at
    FROM made
    """,
    """
    INSERT INTO agentflow_usage_tags (tenant, tag, job_id, attempt, ended_at)
    SELECT tenant, tag, id, 1, at
    FROM made, LATERAL (VALUES ('all'), ('batch-' || i / 100)) AS t (tag)
    """,
    """
    INSERT INTO agentflow_reservations (job_id, attempt, budget_id, since, amount)
    SELECT id, 1, 'bud_1', '', 1 FROM made WHERE i % 20 BETWEEN 6 AND 8
    """,
)


def fill(server: Postgres, database: str, jobs: int, now: datetime) -> None:
    """As of `now`, whenever that was. Job `i`, of 1 to `jobs`, is `job_` and `i` in 32 hexadecimal
    digits; each has three entries of history, two tags, an attempt and a delivery. What is open is
    new: the last tenth."""
    statements = [EACH, JOBS, *THEIRS]
    said = ";".join(each.format(jobs=jobs) for each in statements)
    server.sql(said.replace("now()", f"timestamptz '{now.isoformat()}'"), database)
    server.sql("VACUUM ANALYZE", database)
