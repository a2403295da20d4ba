#!lua
-- enqueue.lua: write the PENDING state of each message and queue it, once for each id.
--
-- KEYS[1]    delayed  ZSET    message -> due, Unix ns
-- KEYS[2i]   state    STRING  of message i; the list again where states are kept elsewhere
-- KEYS[2i+1] ready    LIST    of message i
-- ARGV[1]    most     messages that a list may hold
-- ARGV[2]    kept     s that a PENDING state lives after its message is due
-- ARGV[3i]   payload  bytes of message i
-- ARGV[3i+1] pending  bytes of its state, "" where states are kept elsewhere
-- ARGV[3i+2] due      Unix ns, "0" when ready
--
-- Returns  a code for each message: 1 queued, 0 known id, -1 a key holds something else, -2 full.
-- Cost     O(log delayed) each.
local most, kept, now = tonumber(ARGV[1]), tonumber(ARGV[2]), nil
local codes = {}
for i = 1, (#KEYS - 1) / 2 do
  local state, ready = KEYS[2 * i], KEYS[2 * i + 1]
  local payload, pending, due = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  local length, old, wait_s, code = redis.pcall("LLEN", ready), false, 0, 1
  if pending ~= "" then
    old = redis.pcall("GET", state)
  end
  if due ~= "0" and not now then
    local time = redis.call("TIME")
    now = time[1] * 1e9 + time[2] * 1e3
  end
  if due ~= "0" then
    wait_s = math.max(0, math.ceil((tonumber(due) - now) / 1e9))
  end
  if type(length) == "table" or type(old) == "table" then
    code = -1
  elseif old and string.sub(old, 1, 12) ~= '{"TaskUUID":' then
    code = -1
  elseif old then
    -- The touch is a write, so that a WAIT behind it waits for this call and not for nothing.
    redis.call("EXPIRE", state, math.max(kept + wait_s, redis.call("TTL", state)))
    code = 0
  elseif length >= most then
    code = -2
  else
    if pending ~= "" then
      redis.call("SET", state, pending, "EX", kept + wait_s)
    end
    if wait_s > 0 then
      redis.call("ZADD", KEYS[1], due, payload)
    else
      redis.call("RPUSH", ready, payload)
    end
  end
  codes[i] = code
end
return codes
