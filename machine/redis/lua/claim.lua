#!lua flags=allow-oom
-- claim.lua: take the oldest ready messages and hold them under the worker's lease.
--
-- A message is owned by being a field of the worker's hash. The landing list
-- goes first: what lies there was moved by a wake-up and is the oldest.
--
-- KEYS[6q-5] workers  ZSET    worker id -> lease deadline, ms; six keys for each queue q
-- KEYS[6q-4] held     HASH    claim id -> message, of this worker
-- KEYS[6q-3] seq      STRING  last fence given out
-- KEYS[6q-2] redel    HASH    sha1 of message -> workers that died holding it
-- KEYS[6q-1] hop      LIST    landing list
-- KEYS[6q]   ready    LIST    the queue
-- KEYS[...]  canceled ZSET    task id -> Unix ms until which its mark is kept; the last key
-- ARGV[1]    worker   id of this incarnation
-- ARGV[2]    lease    ms
-- ARGV[3]    want     messages, 0 only renews the lease
-- ARGV[4]    nonce    names this call; fences may repeat after a failover, nonces do not
--
-- Returns  {now ms, marks of canceled tasks, for each queue: {held before or -1 when not registered, first fence,
--          {message, ...}, {crash count, ...}}}; the i-th claim id is "<first fence + i>.<nonce>".
-- Cost     O(want + log workers).
local time = redis.call("TIME")
local now_us = time[1] * 1e6 + time[2]
local now_ms = math.floor(now_us / 1000)
local deadline = string.format("%.0f", now_ms + ARGV[2])
local want, canceled = tonumber(ARGV[3]), KEYS[#KEYS]
local reply = { now_ms, redis.call("ZCARD", canceled) }
if reply[2] > 0 then
  redis.call("ZREMRANGEBYSCORE", canceled, "-inf", now_ms)
end
for q = 1, (#KEYS - 1) / 6 do
  local at = 6 * q - 5
  local held, seq, redel = KEYS[at + 1], KEYS[at + 2], KEYS[at + 3]
  if not redis.call("ZSCORE", KEYS[at], ARGV[1]) then
    reply[q + 2] = { -1, 0, {}, {} }
  else
    redis.call("ZADD", KEYS[at], deadline, ARGV[1])
    local before, messages, counts, fence = redis.call("HLEN", held), {}, {}, 0
    if want > 0 then
      messages = redis.call("LPOP", KEYS[at + 4], want) or {}
      if #messages < want then
        for _, message in ipairs(redis.call("LPOP", KEYS[at + 5], want - #messages) or {}) do
          messages[#messages + 1] = message
        end
      end
    end
    if #messages > 0 then
      fence = math.max(tonumber(redis.call("GET", seq) or "0"), now_us)
      redis.call("SET", seq, string.format("%.0f", fence + #messages))
      local crashed, fields = redis.call("EXISTS", redel) == 1, {}
      for i, message in ipairs(messages) do
        fields[2 * i - 1] = string.format("%.0f.%s", fence + i, ARGV[4])
        fields[2 * i] = message
        counts[i] = crashed and tonumber(redis.call("HGET", redel, redis.sha1hex(message)) or 0) or 0
      end
      redis.call("HSET", held, unpack(fields))
      want = want - #messages
    end
    reply[q + 2] = { before, string.format("%.0f", fence), messages, counts }
  end
end
return reply
