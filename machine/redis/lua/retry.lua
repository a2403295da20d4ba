#!lua flags=allow-oom
-- retry.lua: end claims by putting their re-encoded messages back, ready or delayed.
--
-- KEYS[1]     held     HASH    claim id -> message, of the worker that claimed them
-- KEYS[2]     redel    HASH    sha1 of message -> workers that died holding it
-- KEYS[3]     delayed  ZSET    message -> due, Unix ns
-- KEYS[4]     canceled ZSET    task id -> Unix ms until which its mark is kept
-- KEYS[2i+3]  state    STRING  of claim i; held again where it has none
-- KEYS[2i+4]  ready    LIST    where claim i goes
-- ARGV[1]     kept     s that the RETRY state lives after the message is due
-- ARGV[2]     created  CreatedAt member to use where no state is kept
-- ARGV[5i-2]  claim    id of claim i
-- ARGV[5i-1]  head     new state up to its CreatedAt member, "" writes none
-- ARGV[5i]    payload  the message to put back
-- ARGV[5i+1]  due      Unix ns, "0" = now
-- ARGV[5i+2]  attempt  record of the run that ended, added to those kept in the state
--
-- Returns  a code for each claim: 1 done, 0 not ours, -1 a key holds something else, 3 canceled.
-- Cost     O(log delayed) each.
local MOST_HISTORY = 16384
local time = redis.call("TIME")
local now, codes = time[1] * 1e9 + time[2] * 1e3, {}
for i = 1, (#KEYS - 4) / 2 do
  local state, ready = KEYS[2 * i + 3], KEYS[2 * i + 4]
  local claim, head, due = ARGV[5 * i - 2], ARGV[5 * i - 1], ARGV[5 * i + 1]
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
  elseif head ~= "" and redis.call("ZSCORE", KEYS[4], state) then
    code = 3
  else
    local wait_s = math.max(0, math.ceil((tonumber(due) - now) / 1e9))
    if head ~= "" then
      local created = old and string.match(old, '"CreatedAt":"[^"]*"') or ARGV[2]
      local at = old and string.find(old, '"Attempts":[', 1, true)
      local before = at and string.match(old, '^"Attempts":%[(.*)%],"CreatedAt":"', at)
      local history = before and before .. "," .. ARGV[5 * i + 2] or ARGV[5 * i + 2]
      local cut = string.find(history, '},{"Attempt":', 1, true)
      while cut and #history > MOST_HISTORY do -- the oldest go first
        history = string.sub(history, cut + 2)
        cut = string.find(history, '},{"Attempt":', 1, true)
      end
      local whole = head .. '"Attempts":[' .. history .. "]," .. created .. ',"TTL":0}'
      redis.call("SET", state, whole, "EX", ARGV[1] + wait_s)
    end
    if wait_s > 0 then
      redis.call("ZADD", KEYS[3], due, ARGV[5 * i])
    else
      redis.call("RPUSH", ready, ARGV[5 * i])
    end
    redis.call("HDEL", KEYS[2], redis.sha1hex(message))
    redis.call("HDEL", KEYS[1], claim)
  end
  codes[i] = code
end
return codes
