// --- own code -------------------------------------------------------------------------------------------------

// A function of own code. It sees nothing of this script but what it is given.
function own(name, lines) {
  const code = new Function("user", "http", "check", "sleep", `"use strict";\n${lines.join("\n")}`);
  const title = `${name} runs without errors`;
  return (user) => {
    code(user, http, check, sleep);
    check(true, { [title]: (ok) => ok });
  };
}

// What own code finds in its user, besides the user's data.
function equip(user, kind) {
  user.random = Math.random;
  user.pool = (name) => {
    if (!Object.prototype.hasOwnProperty.call(pools, name)) throw new Error(`there is no pool ${name}`);
    return draw(user, pools[name]);
  };
  user.request = (method, path, { name, body = null, headers, query, expected, contentType } = {}) => {
    const given = kind.call(user);
    const params = {
      headers: Object.assign({}, given.headers),
      cookies: given.cookies,
      jar: user.jar,
      tags: { name: name || `${method} ${path.split("?")[0]}` },
      responseType: "text",
      responseCallback: expected ? http.expectedStatuses(...expected) : http.expectedStatuses({ min: 200, max: 399 }),
    };
    if (body !== null) params.headers["Content-Type"] = contentType || "application/json";
    Object.assign(params.headers, headers);
    const pairs = Object.entries(query || {}).map(([key, value]) => `${url(key)}=${url(value)}`);
    const parts = [given.query, ...pairs].filter((part) => part);
    const address = `${BASE_URL}${path}${parts.length ? (path.includes("?") ? "&" : "?") + parts.join("&") : ""}`;
    const sent = body === null || typeof body === "string" ? body : JSON.stringify(body);
    const response = http.request(method, address, sent, params);
    const title = expected ? `status is one of ${expected.join(", ")}` : "status is 200 to 399";
    const passes = expected ? expected.includes(response.status) : response.status >= 200 && response.status <= 399;
    check(passes, { [title]: (passes) => passes });
    return response;
  };
}
