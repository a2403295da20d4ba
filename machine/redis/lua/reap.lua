#!lua flags=allow-oom
-- reap.lua: take claims from a dead worker: back to the queue, or to an heir who will fail them.
--
-- KEYS[1]   workers  ZSET  worker id -> lease deadline, ms
-- KEYS[2]   held     HASH  claim id -> message, of the dead worker
-- KEYS[3]   heir     HASH  claim id -> message, of the worker that reaps
-- KEYS[4]   redel    HASH  sha1 of message -> workers that died holding it
-- KEYS[5]   ready    LIST  the queue
-- ARGV[1]   worker   id of the dead worker
-- ARGV[2]   stamp    ms, its lease deadline as last seen: another one means it lives
-- ARGV[3]   heir     id of the worker that reaps
-- ARGV[4]   most     deaths that one message may cause
-- ARGV[5]   batch    claims to take in this call
-- ARGV[6...] convict ids of claims that must not run again
--
-- Returns  {claims put back, then id, message, crash count of each claim that the heir holds now},
--          or {-1} when the stamp has changed, {-2} when the heir is not registered.
-- Cost     O(held log held + batch), batch is at most 200.
local stamp = redis.call("ZSCORE", KEYS[1], ARGV[1])
if not stamp or tonumber(stamp) ~= tonumber(ARGV[2]) then
  return { -1 }
elseif not redis.call("ZSCORE", KEYS[1], ARGV[3]) then
  return { -2 }
end
local function fence(id)
  return tonumber(string.match(id, "^%d+"))
end
local ids, convict = redis.call("HKEYS", KEYS[2]), {}
table.sort(ids, function(a, b) return fence(a) < fence(b) end)
for i = 6, #ARGV do
  convict[ARGV[i]] = true
end
local reply = { 0 }
-- Newest first, so that the oldest ends at the head.
for i = math.min(#ids, tonumber(ARGV[5])), 1, -1 do
  local id = ids[i]
  local message = redis.call("HGET", KEYS[2], id)
  local count = redis.call("HINCRBY", KEYS[4], redis.sha1hex(message), 1)
  if count >= tonumber(ARGV[4]) or convict[id] then
    redis.call("HSET", KEYS[3], id, message)
    for _, value in ipairs({ id, message, count }) do
      reply[#reply + 1] = value
    end
  else
    redis.call("LPUSH", KEYS[5], message)
    reply[1] = reply[1] + 1
  end
  redis.call("HDEL", KEYS[2], id)
end
if redis.call("HLEN", KEYS[2]) == 0 then
  redis.call("ZREM", KEYS[1], ARGV[1])
end
return reply
