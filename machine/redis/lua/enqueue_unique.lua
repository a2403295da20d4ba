#!lua
-- enqueue_unique.lua: queue a message, unless a task with its key is there; or instead of that one.
--
-- KEYS[1]  unique   STRING  id of the last task that was sent with this key
-- KEYS[2]  holder   STRING  state of the task that the caller thinks that is; KEYS[5] again for none
-- KEYS[3]  canceled ZSET    task id -> Unix ms until which its mark is kept
-- KEYS[4]  delayed  ZSET    message -> due, Unix ns
-- KEYS[5]  state    STRING  of the message; its name is the id
-- KEYS[6]  ready    LIST    where it goes
-- ARGV[1]  most     messages that a list may hold
-- ARGV[2]  kept     s that a PENDING state lives after its message is due; marks live seven times as long
-- ARGV[3]  payload  bytes of the message
-- ARGV[4]  pending  bytes of its state
-- ARGV[5]  due      Unix ns, "0" when ready
-- ARGV[6]  replace  1 cancels the task that is there, 0 leaves it
-- ARGV[7]  final    s that the state of a canceled task lives
-- ARGV[8]  error    JSON string, of a task canceled for this one
--
-- Returns  {code, id of the task that has the key}: 1 queued, 0 not queued, since that one is there,
--          2 ask again with that one as holder, -1 a key holds something else, -2 full.
-- Cost     O(log delayed + log marks).
local time = redis.call("TIME")
local there, old = redis.pcall("GET", KEYS[1]), redis.pcall("GET", KEYS[5])
local kept, due, wait_s, open = tonumber(ARGV[2]), ARGV[5], 0, false
if due ~= "0" then
  wait_s = math.max(0, math.ceil((tonumber(due) - time[1] * 1e9 - time[2] * 1e3) / 1e9))
end
if type(there) == "table" or type(old) == "table" or old and string.sub(old, 1, 12) ~= '{"TaskUUID":' then
  return { -1, "" }
elseif old then
  redis.call("EXPIRE", KEYS[5], math.max(kept + wait_s, redis.call("TTL", KEYS[5])))
  return { 0, KEYS[5] }
elseif there and there ~= KEYS[2] then
  return { 2, there }
end
local state, length = there and redis.pcall("GET", KEYS[2]), redis.pcall("LLEN", KEYS[6])
if type(length) == "table" then
  return { -1, "" }
elseif type(state) == "string" and string.sub(state, 1, 12) == '{"TaskUUID":' then
  open = not string.find(state, '"State":"SUCCESS"', 1, true) and not string.find(state, '"State":"FAILURE"', 1, true)
end
if open and ARGV[6] == "0" then
  redis.call("EXPIRE", KEYS[1], math.max(kept, redis.call("TTL", KEYS[1]), redis.call("TTL", KEYS[2])))
  return { 0, there }
elseif length >= tonumber(ARGV[1]) then
  return { -2, "" }
elseif open then
  local until_ms = time[1] * 1000 + math.max(kept * 7000, redis.call("PTTL", KEYS[2]))
  local head = string.match(state, '^(.-)"State":"') or '{"TaskUUID":"' .. there .. '",'
  local at = string.find(state, '"Attempts":[', 1, true)
  local history = at and string.match(state, '^.*,"CreatedAt":"[^"]*"', at)
  local created = history or string.match(state, '"CreatedAt":"[^"]*"') or '"CreatedAt":"0001-01-01T00:00:00Z"'
  local failure = '"State":"FAILURE","Results":null,"Error":' .. ARGV[8] .. ","
  redis.call("SET", KEYS[2], head .. failure .. created .. ',"TTL":0}', "EX", ARGV[7])
  redis.call("ZADD", KEYS[3], string.format("%.0f", until_ms), KEYS[2])
end
redis.call("SET", KEYS[5], ARGV[4], "EX", kept + wait_s)
redis.call("SET", KEYS[1], KEYS[5], "EX", kept + wait_s)
if wait_s > 0 then
  redis.call("ZADD", KEYS[4], due, ARGV[3])
else
  redis.call("RPUSH", KEYS[6], ARGV[3])
end
return { 1, KEYS[5] }
