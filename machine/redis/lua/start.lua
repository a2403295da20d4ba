#!lua flags=allow-oom
-- start.lua: show STARTED for messages whose tasks are still running.
--
-- KEYS[1]      held     HASH    claim id -> message, of this worker
-- KEYS[1+i]    state    STRING  of claim i
-- ARGV[1]      kept     s that the state lives
-- ARGV[2]      created  CreatedAt member to use where no state is kept
-- ARGV[2i+1]   claim    id of claim i
-- ARGV[2i+2]   head     new state up to its CreatedAt member
--
-- Returns  a code for each claim: 1 shown, 0 not ours or ended, -1 the key holds something else.
-- Cost     O(1) each.
local codes = {}
for i = 1, #KEYS - 1 do
  local key, old, code = KEYS[1 + i], redis.pcall("GET", KEYS[1 + i]), 1
  if type(old) == "table" or (old and string.sub(old, 1, 12) ~= '{"TaskUUID":') then
    code = -1
  elseif redis.call("HEXISTS", KEYS[1], ARGV[2 * i + 1]) == 0 then
    code = 0
  elseif old and (string.find(old, '"State":"SUCCESS"', 1, true) or string.find(old, '"State":"FAILURE"', 1, true)) then
    code = 0
  else
    local at = old and string.find(old, '"Attempts":[', 1, true)
    local created = at and string.match(old, '^.*,"CreatedAt":"[^"]*"', at)
    created = created or old and string.match(old, '"CreatedAt":"[^"]*"') or ARGV[2]
    redis.call("SET", key, ARGV[2 * i + 2] .. created .. ',"TTL":0}', "EX", ARGV[1])
  end
  codes[i] = code
end
return codes
