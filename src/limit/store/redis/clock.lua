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

-- The generation of keys that are new.
local nonce = number()

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
