-- KEYS: S, beats. ARGV: random.
local epoch, floor = state()
local nodes = {}
for _, name in ipairs((directory())) do
  local beat = redis.call('HGET', KEYS[2], name)
  nodes[#nodes + 1] = name
  nodes[#nodes + 1] = tonumber(redis.call('ZSCORE', S, '\2' .. name) or 0)
  nodes[#nodes + 1] = beat and tonumber(beat) or 0
end
return { epoch, floor, nodes }
