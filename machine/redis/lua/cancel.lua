#!lua flags=allow-oom
-- cancel.lua: let tasks end as canceled: FAILURE at once, and a mark that workers look at.
--
-- KEYS[1]    canceled ZSET    task id -> Unix ms until which its mark is kept
-- KEYS[1+i]  state    STRING  of task i; canceled again where states are kept elsewhere
-- ARGV[1]    kept     s that a final state lives
-- ARGV[2]    pending  s that a state lives which is not final; marks live seven times as long
-- ARGV[3]    error    JSON string, "canceled" and perhaps more
-- ARGV[3i+1] id       of task i
-- ARGV[3i+2] state    FAILURE for a task that has none yet, "" where states are kept elsewhere
-- ARGV[3i+3] ahead    1 when it may have none: others are to send it later; else 0
--
-- Returns  a code for each task: 2 canceled now or before, 1 ended before, 0 no state, -1 bad key.
-- Cost     O(log marks) each.
local time = redis.call("TIME")
local now_ms, codes = time[1] * 1000 + math.floor(time[2] / 1000), {}
for i = 1, #KEYS - 1 do
  local key, id, state = KEYS[1 + i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  local old, code, kept_ms = false, 2, ARGV[2] * 7000
  if state ~= "" then
    old = redis.pcall("GET", key)
  end
  local ahead = type(old) == "string" and string.sub(old, 1, 9) == '{"Ahead":'
  if ahead then
    old = false -- written for Go, which takes a missing state for an error
  end
  if type(old) == "table" or old and string.sub(old, 1, 12) ~= '{"TaskUUID":' then
    code = -1
  elseif old and string.find(old, '"State":"SUCCESS"', 1, true) then
    code = 1 -- looked for first: the values of a result may say anything
  elseif old and string.find(old, '"State":"FAILURE"', 1, true) then
    code = string.find(old, ',"Error":"canceled', 1, true) and 2 or 1
  elseif state ~= "" and not old and not ahead and ARGV[3 * i + 3] == "0" then
    code = 0
  elseif old then
    -- A delayed task's message comes later than any result is kept: the mark waits for it.
    kept_ms = math.max(kept_ms, redis.call("PTTL", key))
    local head = string.sub(old, 1, (string.find(old, '"State":"', 1, true) or 1) - 1)
    local at = string.find(old, '"Attempts":[', 1, true) or 1
    local created = string.match(old, at > 1 and '^.*,"CreatedAt":"[^"]*"' or '"CreatedAt":"[^"]*"', at)
    if head ~= "" and created then
      state = head .. '"State":"FAILURE","Results":null,"Error":' .. ARGV[3] .. "," .. created .. ',"TTL":0}'
    end
    redis.call("SET", key, state, "EX", ARGV[1])
    redis.call("ZADD", KEYS[1], string.format("%.0f", now_ms + kept_ms), id)
  elseif state ~= "" then
    -- It is never queued: that is done only where no state is.
    redis.call("SET", key, state, "EX", ARGV[2])
  else
    redis.call("ZADD", KEYS[1], string.format("%.0f", now_ms + kept_ms), id)
  end
  codes[i] = code
end
return codes
