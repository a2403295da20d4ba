#!lua flags=allow-oom
-- retry.lua: end claims by putting their re-encoded messages back, ready or delayed.
--
-- KEYS[1]     held     HASH    claim id -> message, of the worker that claimed them
-- KEYS[2]     redel    HASH    sha1 of message -> workers that died holding it
-- KEYS[3]     delayed  ZSET    message -> due, Unix ns
-- KEYS[2i+2]  state    STRING  of claim i; held again where it has none
-- KEYS[2i+3]  ready    LIST    where claim i goes
-- ARGV[1]     kept     s that the RETRY state lives after the message is due
-- ARGV[2]     created  CreatedAt member to use where no state is kept
-- ARGV[4i-1]  claim    id of claim i
-- ARGV[4i]    head     new state up to its CreatedAt member, "" writes none
-- ARGV[4i+1]  payload  the message to put back
-- ARGV[4i+2]  due      Unix ns, "0" = now
--
-- Returns  a code for each claim: 1 done, 0 not ours, -1 a key holds something else.
-- Cost     O(log delayed) each.
local time = redis.call("TIME")
local now, codes = time[1] * 1e9 + time[2] * 1e3, {}
for i = 1, (#KEYS - 3) / 2 do
  local state, ready = KEYS[2 * i + 2], KEYS[2 * i + 3]
  local claim, head, due = ARGV[4 * i - 1], ARGV[4 * i], ARGV[4 * i + 2]
  local old, code = false, 1
  local message = redis.call("HGET", KEYS[1], claim)
  if head ~= "" then
    old = redis.pcall("GET", state)
  end
  if not message then
    code = 0
  elseif type(old) == "table" or (old and string.sub(old, 1, 12) ~= '{"TaskUUID":') then
    code = -1
  elseif type(redis.pcall("LLEN", ready)) == "table" then
    code = -1
  else
    local wait_s = math.max(0, math.ceil((tonumber(due) - now) / 1e9))
    if head ~= "" then
      local created = old and string.match(old, '"CreatedAt":"[^"]*"') or ARGV[2]
      redis.call("SET", state, head .. created .. ',"TTL":0}', "EX", ARGV[1] + wait_s)
    end
    if wait_s > 0 then
      redis.call("ZADD", KEYS[3], due, ARGV[4 * i + 1])
    else
      redis.call("RPUSH", ready, ARGV[4 * i + 1])
    end
    redis.call("HDEL", KEYS[2], redis.sha1hex(message))
    redis.call("HDEL", KEYS[1], claim)
  end
  codes[i] = code
end
return codes
