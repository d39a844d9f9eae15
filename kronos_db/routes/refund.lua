-- Gives back what demands have consumed that were then denied elsewhere.
--
-- KEYS as in consume.lua. ARGV[1]: JSON list of demands: the place of its memory or 0, its lease, then of each item the
-- place of its counter, its kind and what was taken. Answers 1.
local clock = redis.call('TIME')
local now = (clock[1] - 1735689600) * 8000000 + clock[2] * 8
for _, demand in ipairs(cjson.decode(ARGV[1])) do
  if demand[1] > 0 then
    redis.call('DEL', KEYS[demand[1]])
  end
  for i = 3, #demand, 3 do
    local key = KEYS[demand[i]]
    if demand[i + 1] == 2 then
      redis.call('ZREM', key, demand[2])
    else
      local at = tonumber(redis.call('GET', key) or now) - demand[i + 2]
      if at > now then
        redis.call('SET', key, string.format('%.0f', at), 'PX', math.ceil((at - now) / 8000) + 1)
      else
        redis.call('DEL', key)
      end
    end
  end
end
return 1
