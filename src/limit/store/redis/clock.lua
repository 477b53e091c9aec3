-- What all of the script uses. Times are tenths of a microsecond since 2025.
local FAR = 9000000000000000
local YEAR_2025 = 1735689600
local TIME = redis.call('TIME')
local now = (tonumber(TIME[1]) - YEAR_2025) * 10000000 + tonumber(TIME[2]) * 10

local read = 0
local function number()
  read = read + 1
  return tonumber(ARGV[read])
end

-- A generation is a number of its own for each life of a key, and after it how often the key was
-- written. This is that of a new life.
local WRITES = 1073741824
local nonce = number() * WRITES

-- Whether the node has seen this life of the key, and nothing of it that was lost. What a node has
-- seen beyond the level is then to be heard of all nodes.
local function knows(k, level)
  if math.floor(k.known / WRITES) ~= math.floor(k.gen / WRITES) then
    return false
  end
  local lost = (k.known - k.gen) % WRITES
  if lost == 0 or lost > WRITES / 2 then
    return true
  end
  -- A replica took over that had not heard the last of it.
  k.gen, k.dirty = nonce, true
  k.healed = k.healed == FAR and FAR or level
  return false
end

local function wrote(k)
  local writes = k.gen % WRITES
  k.gen = k.gen - writes + (writes + 1) % WRITES
end

-- Says that more is there than others may think.
local function publish(k)
  local namespace, fingerprint = string.match(k.name, '^{(.*):limit:%d+}:(%x+)$')
  redis.call('PUBLISH', namespace .. ':limit', fingerprint)
end

-- Sets a key to some whole numbers, until a time.
local function keep(k, till, ...)
  local form = string.rep('%.0f ', select('#', ...))
  local value = string.format(string.sub(form, 1, -2), ...)
  local millis = math.ceil((till - now + 1) / 10000)
  redis.call('SET', k.name, value, 'PX', string.format('%.0f', millis))
end
